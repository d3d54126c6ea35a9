"""The engine over HTTP, as an ordinary FastAPI application. Importing this says which extra is missing, if one is."""

from piggyback.errors import require

for _module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "fastapi_swagger"):
    require(_module, "serve")

from piggyback.serve.http.app import app_from_env as app_from_env  # noqa: E402
from piggyback.serve.http.app import create_app as create_app  # noqa: E402
from piggyback.serve.http.limits import Limits as Limits  # noqa: E402
