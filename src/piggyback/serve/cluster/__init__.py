"""The engine on several processes or machines, with Ray Serve; docs/CLUSTER.md has the picture."""

from piggyback.serve.cluster.app import build, run
from piggyback.serve.cluster.options import ClusterOptions

__all__ = ["ClusterOptions", "build", "run"]
