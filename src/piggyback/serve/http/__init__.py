"""The engine over HTTP. Importing this says which extra is missing, if one is."""

from piggyback.errors import require

for _module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    require(_module, "serve")
