"""Open a page in the browser: ask about a picture under several methods, see which tokens stay and what each of them
contributes.

The page is served to this machine alone, fetches nothing from elsewhere, and forgets what was uploaded when it ends."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import threading

from ..errors import InputError
from .options import add_model_options, positive_int

EPILOG = """\
examples:
  topv ui
  topv ui --model llava-hf/llava-1.5-7b-hf
  topv ui --port 8000 --no-browser

The page needs Gradio: pip install 'topv[ui]'
A link such as http://127.0.0.1:7860/?picture=2&methods=none,topv&keep=0.25 opens the page with these settings."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv ui`."""
    parser.add_argument("--port", type=positive_int, metavar="N", help="port (the first free one from 7860 on)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at (127.0.0.1: this machine alone). Beyond it, anyone who reaches the address can use "
        "the page: there is no password",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--max-upload", type=positive_int, default=20, metavar="MIB", help="largest upload (20 MiB)")
    parser.add_argument("--queue", type=positive_int, default=16, metavar="N", help="questions that may wait (16)")
    add_model_options(parser, answers=False)


def run(args: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    # Found, not imported: Gradio makes its folder for files while it is imported, before it is told where.
    if importlib.util.find_spec("gradio") is None:
        raise InputError("topv ui needs Gradio: pip install 'topv[ui]'")
    from ..loading import BUNDLED, TILED, load_model, placement
    from ..ui.comparing import Comparer
    from ..ui.limits import Limits
    from ..ui.model_slot import ModelSlot
    from ..ui.serving import LOOPBACK, served
    from .console import progress, quiet_transformers

    quiet_transformers()
    # Told to end, it cleans up as when interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    placement(args.device, args.dtype)
    limits = Limits(upload_bytes=args.max_upload * 2**20, queue=args.queue)
    slot = ModelSlot(args.model)
    try:
        with served(slot, limits, host=args.host, port=args.port, measure=args.model in (BUNDLED, TILED)) as address:
            print(f"topv ui at {address} (Ctrl+C ends it)", flush=True)
            if args.host != LOOPBACK:
                print(f"topv ui: anyone who reaches {args.host} can use this page", file=sys.stderr)
            if not args.no_browser:
                import webbrowser

                webbrowser.open(address)
            try:
                with progress(f"Loading {args.model}"):
                    model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
                slot.fill(Comparer(model, processor, args.model))
            finally:
                slot.give_up()
            threading.Event().wait()
    except OSError as error:
        raise InputError(f"the page cannot be served at {args.host}: {error}") from error
    return 0
