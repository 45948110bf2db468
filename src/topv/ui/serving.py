"""Serving the page: on loopback, without telemetry, links to share, or anything fetched from elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from .limits import Limits
from .model_slot import ModelSlot

__all__ = ["LOOPBACK", "served"]

LOOPBACK = "127.0.0.1"
_OWN_NAMES = (LOOPBACK, "localhost", "::1")


@contextmanager
def served(
    slot: ModelSlot, limits: Limits, *, host: str = LOOPBACK, port: int | None = None, measure: bool = False
) -> Iterator[str]:
    """Serve the page in the background for the block; yields its address.

    Uploads, and the reports to download, lie in a folder that only this user can read, and are gone with the block.

    Args:
        slot: the model, which may still be loading.
        limits: what visitors may ask.
        host: the address to listen at.
        port: the port; None for the first free one from 7860 on.
        measure: whether times are measured unless a visitor says otherwise.

    Raises:
        OSError: when the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="topv-ui-") as folder, _environment(f"{folder}/cache"):
        import gradio as gr
        from gradio.themes import Base
        from gradio.themes.utils.fonts import Font

        from .guard import Guard
        from .page import build_page

        page = build_page(slot, limits, folder=Path(folder), measure=measure)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                show_error=False,
                quiet=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                max_file_size=limits.upload_bytes,
                state_session_capacity=64,
                app_kwargs={"middleware": Guard.as_middleware(_OWN_NAMES if host in _OWN_NAMES else None)},
                theme=Base(
                    font=[Font("system-ui"), Font("sans-serif")], font_mono=[Font("ui-monospace"), Font("monospace")]
                ).set(
                    # Light enough and dark enough to be read: 4.5 to 1 and more.
                    body_text_color_subdued="*neutral_600",
                    body_text_color_subdued_dark="*neutral_300",
                    button_primary_background_fill="*primary_600",
                    link_text_color_dark="*primary_300",
                ),
                css=resources.files("topv.ui").joinpath("page.css").read_text(encoding="utf-8"),
            )
            yield address
        finally:
            page.close(verbose=False)
            gr.close_all(verbose=False)


@contextmanager
def _environment(cache: str) -> Iterator[None]:
    """Gradio and the hub's client take these from the environment alone."""
    wanted: dict[str, Any] = {
        "GRADIO_TEMP_DIR": cache,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_SHARE": "False",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
