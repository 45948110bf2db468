"""Loading models that come from anywhere: checked first, then read, and never unpickled."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, unknown_name

if TYPE_CHECKING:
    import torch

__all__ = ["BUNDLED", "TILED", "load_model", "placement"]

BUNDLED = "mini"
"""The name of the model that is part of the package."""

TILED = "tiled"
"""The name of its sibling, which sees tiles and a thumbnail."""

_DTYPES = ("float32", "float16", "bfloat16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_model(
    name_or_path: str | PathLike[str], *, dtype: str | torch.dtype = "auto", device: str = "auto"
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor, from safetensors only and without running remote code.

    Args:
        name_or_path: "mini" for the bundled model, "tiled" for its tiled sibling, the directory of a saved model, or
            "owner/name" on the hub.
        dtype: "auto" (bfloat16 on CUDA, float32 on a CPU, where bfloat16 is often hundreds of times slower),
            "float32", "float16", "bfloat16", or a torch dtype.
        device: "auto" (CUDA where there is one, else the CPU), or a torch device such as "cpu" or "cuda:1".

    Returns:
        The model, in eval mode on `device`, and its processor.

    Raises:
        InputError: when the name is unknown, the directory is incomplete, or only pickled weights are there.
    """
    where, kind = placement(device, dtype)
    name = str(name_or_path)
    if name in (BUNDLED, TILED):
        from .mini import load_mini

        try:
            model, processor = load_mini(tiled=name == TILED)
        except FileNotFoundError as error:
            raise InputError(str(error)) from error
        return model.to(device=where, dtype=kind).eval(), processor
    path = Path(name).expanduser()
    if path.exists() or isinstance(name_or_path, PathLike) or _looks_like_path(name):
        _check_directory(path, name)
        model, processor = _from_transformers(str(path), kind, local=True)
    elif name.count("/") == 1:
        model, processor = _from_transformers(name, kind, local=_only_in_cache(name))
    else:
        raise _unknown_model(name)
    return model.to(where).eval(), processor


def placement(device: str, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that `load_model` takes these for.

    Raises:
        InputError: when the device is not there, or there is no such dtype.
    """
    where = _device(device)
    return where, _dtype(dtype, where)


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or name in ("", ".", "..") or name.count("/") > 1


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is not a device. Expected 'auto', 'cpu', 'cuda' or 'cuda:1'.") from error
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return found


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise InputError(str(unknown_name("dtype", dtype, ("auto", *_DTYPES))))
    found: torch.dtype = getattr(torch, dtype)
    return found


def _unknown_model(name: str) -> InputError:
    return InputError(
        f"{unknown_name('model', name, {BUNDLED, TILED, *_cached()})} Or pass the directory of a saved model, or the "
        "id 'owner/name' of a model on the hub."
    )


def _cached() -> list[str]:
    """Models already in the hub's cache on this machine, by id."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except (CacheNotFound, OSError, ValueError):
        return []


def _only_in_cache(name: str) -> bool:
    """Whether hub model `name` can only be had from the cache, because the hub cannot be reached.

    Raises:
        InputError: when there is no such model, it is not open to the user, or it has no safetensors.
    """
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        files = [file.rfilename for file in model_info(name, timeout=10).siblings or ()]
    except GatedRepoError as error:
        raise InputError(f"model {name!r} is gated: ask for access on its hub page, then log in.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _unknown_model(name) from error
    except Exception as error:
        # Whatever else fails here, down to the network stack, means that the hub has not answered.
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        raise InputError(
            f"model {name!r} is neither a directory nor in this machine's cache, and the hub cannot be reached "
            f"({_first_line(error)}). In the cache: {', '.join(sorted(_cached())) or 'nothing'}. Bundled: {BUNDLED}, "
            f"{TILED}."
        ) from error
    if not any(file.endswith(".safetensors") for file in files):
        raise InputError(
            f"model {name!r} has no safetensors on the hub ({len(files)} files). topv opens nothing else, since "
            "opening a pickle can run any program in it."
        )
    return False


def _check_directory(path: Path, name: str) -> None:
    """A saved model has a config and safetensors, all of them.

    Raises:
        InputError: naming the directory and what is missing.
    """
    expected = "Expected the directory that `save_pretrained` of the model and the processor wrote."
    if not path.exists():
        raise InputError(f"model directory {name!r} does not exist. {expected}")
    if path.is_file():
        refused = any(path.match(pattern) for pattern in _PICKLES)
        reason = "is a pickled checkpoint, which topv never opens" if refused else "is a file"
        raise InputError(f"model {name!r} {reason}. {expected}")
    if not (path / "config.json").is_file():
        raise InputError(f"model directory {name!r} has no config.json (it holds {_listing(path)}). {expected}")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index.name} in model directory {name!r} is damaged: {error!r}.") from error
        missing = sorted(shard for shard in shards if not (path / str(shard)).is_file())
        if missing:
            raise InputError(
                f"model directory {name!r} misses weights: {', '.join(map(str, missing))}. Download them again."
            )
    elif not (path / "model.safetensors").is_file():
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        if pickles:
            raise InputError(
                f"model directory {name!r} holds only pickled weights ({', '.join(pickles[:3])}). topv refuses them, "
                "since opening a pickle can run any program in it. Convert them to safetensors where you trust "
                "them: `model.save_pretrained(directory)`."
            )
        raise InputError(
            f"model directory {name!r} has no weights: expected model.safetensors or model.safetensors.index.json "
            f"with its shards (it holds {_listing(path)})."
        )


def _listing(path: Path) -> str:
    names = sorted(file.name for file in path.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


def _from_transformers(name: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except Exception as error:
        raise InputError(f"the processor of model {name!r} could not be loaded: {_first_line(error)}") from error
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"model {name!r} comes with a {type(processor).__name__}, which takes no images. Expected a "
            "vision-language model saved with its processor."
        )
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"model {name!r} could not be loaded: {_first_line(error)}") from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise InputError(
            f"the weights of model {name!r} lack {len(missing)} of the tensors that {type(model).__name__} needs, such "
            f"as {missing[0]!r}. They would be random: save the model anew."
        )
    return model, processor


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
