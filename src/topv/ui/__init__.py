"""The page in the browser: ask about a picture under several methods, and see which tokens stay and why.

Only `page` and `serving` need Gradio (`pip install topv[ui]`)."""
