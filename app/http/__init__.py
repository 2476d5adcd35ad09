"""HTTP: the only room that imports Sanic."""
