"""Models and images that come from anywhere."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from topv.errors import InputError, TopVError
from topv.images import open_image
from topv.loading import load_model


def png(width: int, height: int) -> bytes:
    """The head of a PNG of any size, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def said(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert isinstance(error.value, TopVError)
    assert isinstance(error.value, ValueError)
    return str(error.value)


# ---- images ---------------------------------------------------------------------------------------------------


def test_an_image_from_a_path_and_from_bytes(picture):
    from_path = open_image(picture)
    assert from_path.mode == "RGB"
    assert from_path.size == (40, 30)
    assert from_path.tobytes() == open_image(picture.read_bytes()).tobytes() == open_image(str(picture)).tobytes()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    assert open_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    opened = open_image(encoded(image))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_sixteen_bit_greys_keep_their_shades():
    greys = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = open_image(encoded(greys))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_not_an_image(tmp_path):
    assert "not an image" in said(open_image, b"print('hello')")
    assert "PNG" in said(open_image, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "empty (0 bytes)" in said(open_image, b"")
    assert "'missing.png' does not exist" in said(open_image, "missing.png")
    assert "not a file" in said(open_image, tmp_path)


def test_a_truncated_image(picture):
    assert "damaged PNG" in said(open_image, png(8, 8))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert "damaged JPEG" in said(open_image, encoded(Image.fromarray(noise), "JPEG")[:900])


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_large_image_is_refused_by_its_header(size):
    message = said(open_image, png(*size))
    assert "64,000,000" in message
    assert "max_pixels" in message


def test_the_pixel_limit_can_be_set():
    image = encoded(Image.new("RGB", (10, 10)))
    assert open_image(image, max_pixels=100).size == (10, 10)
    assert "10 x 10 = 100 pixels" in said(open_image, image, max_pixels=99)


def test_a_strip_that_processors_would_blow_up():
    assert "Crop it" in said(open_image, png(1, 201))
    assert open_image(encoded(Image.new("RGB", (1, 200)))).size == (1, 200)


# ---- models ---------------------------------------------------------------------------------------------------


def test_a_saved_model(model_dir):
    model, processor = load_model(model_dir, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert processor.image_token == "<image>"
    assert load_model(str(model_dir), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16


def test_the_bundled_model_by_name(monkeypatch):
    import topv.mini

    module = torch.nn.Linear(1, 1)
    monkeypatch.setattr(topv.mini, "load_mini", lambda tiled: (module, "tiled" if tiled else "whole"))
    assert load_model("mini", dtype="float16", device="cpu") == (module, "whole")
    assert load_model("tiled", dtype="float16", device="cpu") == (module, "tiled")
    assert module.weight.dtype == torch.float16
    assert not module.training


def test_an_installation_without_the_bundled_model(monkeypatch):
    import topv.mini

    def missing(tiled):
        raise FileNotFoundError("no weights; reinstall")

    monkeypatch.setattr(topv.mini, "load_mini", missing)
    assert said(load_model, "mini") == "no weights; reinstall"


def test_unknown_names_offer_the_nearest(monkeypatch):
    monkeypatch.setattr("topv.loading._cached", lambda: ["owner/llava-tiny"])
    message = said(load_model, "minni")
    assert "Did you mean 'mini'" in message
    assert "owner/llava-tiny" in message


def test_a_hub_model_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def unreachable(name, timeout):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    message = said(load_model, "owner/nothing-here")
    assert "no network" in message
    assert "mini" in message


def test_a_hub_model_with_pickled_weights_only(monkeypatch):
    import huggingface_hub

    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "pytorch_model.bin")]
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: SimpleNamespace(siblings=files))
    assert "no safetensors" in said(load_model, "owner/pickled")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_directory_that_is_not_there(name):
    assert f"{name!r} does not exist" in said(load_model, name)


def test_a_directory_without_config(model_dir):
    (model_dir / "config.json").unlink()
    message = said(load_model, model_dir)
    assert str(model_dir) in message
    assert "no config.json" in message


def test_a_damaged_config(model_dir):
    (model_dir / "config.json").write_text("{")
    assert "could not be loaded" in said(load_model, model_dir)


def test_a_directory_without_weights(model_dir):
    (model_dir / "model.safetensors").unlink()
    message = said(load_model, model_dir)
    assert str(model_dir) in message
    assert "no weights: expected model.safetensors" in message


def test_missing_shards_are_named(model_dir):
    (model_dir / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_dir / "model-1.safetensors").write_bytes(b"")
    message = said(load_model, model_dir)
    assert "model-2.safetensors" in message
    assert "model-1.safetensors" not in message
    (model_dir / "model.safetensors.index.json").write_text("[]")
    assert "damaged" in said(load_model, model_dir)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_a_pickle_is_refused_unopened(model_dir, name):
    (model_dir / "model.safetensors").unlink()
    (model_dir / name).write_bytes(pickle.dumps(Bomb()))
    message = said(load_model, model_dir)
    assert name in message
    assert "pickle" in message
    assert "safetensors" in message
    assert "pickled checkpoint" in said(load_model, model_dir / name)


def test_weights_that_do_not_fill_the_model(model_dir):
    weights = load_file(model_dir / "model.safetensors")
    gone = next(name for name in weights if "q_proj" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, model_dir / "model.safetensors", {"format": "pt"})
    message = said(load_model, model_dir)
    assert "lack 1 of the tensors" in message
    assert "q_proj" in message


def test_damaged_weights(model_dir):
    (model_dir / "model.safetensors").write_bytes(b"not a tensor")
    assert "could not be loaded" in said(load_model, model_dir)


def test_a_model_without_its_processor(model_dir):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (model_dir / name).unlink(missing_ok=True)
    assert "processor" in said(load_model, model_dir)


def test_a_model_that_is_not_a_vision_language_model(model_dir):
    (model_dir / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert str(model_dir) in said(load_model, model_dir)


@pytest.mark.parametrize(
    ("option", "value"), [("dtype", "flaot32"), ("device", "gpu"), ("device", "cuda:99"), ("dtype", "int8")]
)
def test_unknown_devices_and_dtypes(option, value):
    message = said(load_model, "mini", **{option: value})
    assert repr(value) in message
    if value == "flaot32":
        assert "Did you mean 'float32'" in message
