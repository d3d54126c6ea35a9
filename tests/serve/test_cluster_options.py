"""What a cluster is told, by a command or a config file."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from piggyback import errors
from piggyback.errors import (
    InputError,
    OverloadError,
    PiggybackError,
    PiggybackWarning,
)
from piggyback.serve.cluster import ClusterOptions, build, run
from piggyback.serve.cluster.app import _cause
from piggyback.serve.cluster.failures import Failure
from piggyback.serve.cluster.options import from_args
from piggyback.serve.options import EngineOptions

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "docs" / "cluster.yaml"
ARGS = {"tasks": "s3://bucket/tasks", "backbone": "efficientnet_lite0"}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PiggybackError)
]


class TestOptions:
    def test_a_config_files_args_are_the_options(self, monkeypatch, tmp_path):
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
            ({**ARGS, "replica": 2}, "args.replica: no such option"),
            ({**ARGS, "engine": {"batch": 2}}, "args.engine.batch: no such option"),
            ({**ARGS, "engine": 3}, "args.engine: expected a mapping"),
            ({**ARGS, "limits": {"images": 0}}, "images"),
            ({**ARGS, "limits": {"images": "many"}}, "args.limits"),
            ({**ARGS, "replicas": 0}, "replicas: expected a whole number of at least 1"),
            ({**ARGS, "replicas": True}, "replicas: expected a whole number"),
            ({**ARGS, "autoscale": 3}, "args.autoscale: expected"),
            (
                {**ARGS, "autoscale": [3, 1]},
                "autoscale's most: expected a whole number of at least 3",
            ),
            ({**ARGS, "cpus": -1}, "cpus: expected a number of at least 0"),
            ({**ARGS, "memory": "much"}, "much"),
            ({**ARGS, "warm": 0}, "warm: expected"),
            ({**ARGS, "token": "secret"}, "no place for a token"),
            ({**ARGS, "token_file": "no/such/file"}, "cannot be read"),
            ({**ARGS, "tasks": "tasks"}, "relative path"),
            ({"tasks": "s3://bucket/tasks"}, "backbone"),
            ({**ARGS, "backbone": ""}, "backbone: expected a non-empty text"),
        ],
    )
    def test_what_is_wrong_is_named_in_one_line(self, args, said):
        with pytest.raises(InputError) as caught:
            from_args(args)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_the_example_builds(self):
        pytest.importorskip("ray.serve")
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
        (application,) = config.applications
        assert application.import_path == f"{build.__module__.rpartition('.')[0]}:build"
        ingress = build(application.args)._bound_deployment
        engines = ingress.init_args[0]._bound_deployment
        assert (ingress.name, engines.name) == ("ingress", "engine")
        assert engines._deployment_config.autoscaling_config.max_replicas == 8
        assert isinstance(engines.init_args[0], ClusterOptions)


class TestRun:
    OPTIONS = ClusterOptions(tasks="tasks", backbone="efficientnet_lite0")

    def test_a_port_that_is_taken_is_told_before_ray_starts(self):
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(InputError, match="cannot be had"),
        ):
            run(self.OPTIONS, port=taken.getsockname()[1])

    def test_an_open_address_without_a_token_is_warned_of(self):
        with (
            socket.create_server(("0.0.0.0", 0)) as taken,
            pytest.warns(PiggybackWarning, match="has no token"),
            pytest.raises(InputError),
        ):
            run(self.OPTIONS, host="0.0.0.0", port=taken.getsockname()[1])

    def test_what_a_replica_raised_is_found_in_rays_words(self):
        said = "The deployment failed to start.\n  File ...\npiggyback.errors.BackboneError: no 'net'\n"
        deployments = {"engine": SimpleNamespace(message=said)}
        status = SimpleNamespace(
            applications={"piggyback": SimpleNamespace(deployments=deployments)}
        )
        cause = _cause(status, RuntimeError("failed"))
        assert type(cause) is errors.BackboneError
        assert str(cause) == "no 'net'"
        deployments["engine"].message = "out of memory"
        assert str(_cause(status, RuntimeError("failed"))) == "failed"


class TestFailures:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_error_arrives_as_what_it_was(self, kind):
        error = kind("it failed", 2.5) if kind is OverloadError else kind("it failed")
        again = Failure.of(error).error()
        assert type(again) is kind
        assert str(again) == str(error)
        assert getattr(again, "retry_after", None) == getattr(error, "retry_after", None)
