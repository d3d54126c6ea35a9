"""What a cluster is told, by a command or a config file."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from piggyback import errors
from piggyback.errors import InputError, PiggybackWarning
from piggyback.serve.cluster import ClusterOptions, build, run
from piggyback.serve.cluster.app import _cause
from piggyback.serve.cluster.options import from_args
from piggyback.serve.options import EngineOptions

CONFIG = Path(__file__).parents[3] / "docs" / "cluster.yaml"
ARGS = {"tasks": "s3://bucket/tasks", "backbone": "efficientnet_lite0"}
OPTIONS = ClusterOptions(tasks="tasks", backbone="efficientnet_lite0")


def test_a_config_files_args_are_the_options(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    args = {
        **ARGS,
        "autoscale": [1, 4],
        "engine": {"max_batch": 8},
        "limits": {"images": 4},
        "token_file": str(tmp_path / "token"),
    }
    options = from_args(args)
    assert options.autoscale == (1, 4)
    assert options.engine == EngineOptions(max_batch=8)
    assert options.limits.images == 4
    assert options.token == "secret"
    assert "secret" not in repr(options)
    monkeypatch.setenv("PIGGYBACK_TOKEN", "other")
    assert from_args(ARGS).token == "other"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({**ARGS, "replica": 2}, "args.replica: no such option; did you mean 'replicas'"),
        ({**ARGS, "engine": {"batch": 2}}, "args.engine.batch: no such option"),
        ({**ARGS, "engine": 3}, "args.engine: expected a mapping"),
        ({**ARGS, "engine": {"max_batch": "many"}}, "args.engine.max_batch"),
        ({**ARGS, "limits": {"images": 0}}, "args.limits: "),
        ({**ARGS, "limits": {"images": "many"}}, "args.limits.images"),
        ({**ARGS, "replicas": 0}, "replicas 0: expected at least 1"),
        ({**ARGS, "autoscale": 3}, "args.autoscale"),
        ({**ARGS, "autoscale": [3, 1]}, "autoscale [3, 1]"),
        ({**ARGS, "cpus": -1}, "cpus -1"),
        ({**ARGS, "memory": "much"}, "much"),
        ({**ARGS, "warm": 0}, "warm 0"),
        ({**ARGS, "token": "secret"}, "not the place for a token"),
        ({**ARGS, "token_file": "no/such/file"}, "cannot be read"),
        ({**ARGS, "tasks": "tasks"}, "relative path"),
        ({"tasks": "s3://bucket/tasks"}, "args.backbone"),
        ({**ARGS, "backbone": ""}, "backbone: expected a non-empty text"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(args, said, monkeypatch):
    monkeypatch.setenv("PIGGYBACK_TOKEN", "secret-of-the-environment")
    with pytest.raises(InputError) as caught:
        from_args(args)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_example_builds():
    pytest.importorskip("ray.serve")
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    assert application.import_path == f"{build.__module__.rpartition('.')[0]}:build"
    deployment = build(application.args)._bound_deployment
    assert deployment._deployment_config.autoscaling_config.max_replicas == 8
    assert isinstance(deployment.init_args[0], ClusterOptions)


def test_a_port_that_is_taken_is_told_before_ray_starts():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="cannot be had"),
    ):
        run(OPTIONS, port=taken.getsockname()[1])


def test_an_open_address_without_a_token_is_warned_of():
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.warns(PiggybackWarning, match="has no token"),
        pytest.raises(InputError),
    ):
        run(OPTIONS, host="0.0.0.0", port=taken.getsockname()[1])


def test_what_a_replica_raised_is_found_in_rays_words():
    said = "The deployment failed to start.\n  File ...\npiggyback.errors.BackboneError: no 'net'\n"
    deployments = {"piggyback": SimpleNamespace(message=said)}
    status = SimpleNamespace(applications={"piggyback": SimpleNamespace(deployments=deployments)})
    cause = _cause(status, RuntimeError("failed"))
    assert type(cause) is errors.BackboneError
    assert str(cause) == "no 'net'"
    deployments["piggyback"].message = "out of memory"
    assert str(_cause(status, RuntimeError("failed"))) == "failed"
