"""What an image and a cluster of images are made of: right by their formats and by our own commands."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from vpmu.cli import app

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "examples/cluster/kubernetes.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def options_of(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the command that arguments name, and the options in them that it does not have."""
    command: Any = get_command(app)
    words = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return command.name, [option for option in given if option not in known]


def test_the_compose_file_is_valid_by_its_schema(compose: dict[str, Any]):
    shipped = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose, json.loads(shipped.read_text()))


def test_the_compose_file_is_a_cluster_that_trusts_nobody(compose: dict[str, Any]):
    services = compose["services"]
    assert set(services) == {"scheduler", "worker", "run"}
    assert compose["networks"]["cluster"]["internal"]
    for service in services.values():
        assert service["networks"] == ["cluster"]
        assert service["environment"]["VPMU_SCHEDULER"].startswith("tls://")
        assert service["cap_drop"] == ["ALL"]
        assert "./keys:/keys:ro" in service["volumes"]
        assert "--insecure" not in service["command"]
        assert "ports" not in service
        assert options_of(service["command"])[1] == []
    # `--scale worker=N` may start several: nothing of a worker is there once only.
    assert not {"container_name", "hostname", "ports"} & set(services["worker"])


def test_the_kubernetes_recipe_uses_commands_that_there_are():
    cluster, job = yaml.safe_load_all(KUBERNETES.read_text())
    pods = [
        cluster["spec"]["scheduler"]["spec"],
        cluster["spec"]["worker"]["spec"],
        job["spec"]["template"]["spec"],
    ]
    for pod in pods:
        (container,) = pod["containers"]
        assert options_of(container["args"])[1] == []
        assert {"name": "VPMU_SCHEDULER", "value": "tls://vpmu-scheduler:8786"} in container["env"]
        assert pod["volumes"][0]["secret"]["secretName"] == "vpmu-keys"


def test_the_image_is_built_in_stages_and_runs_as_nobody_special():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    assert "USER vpmu" in lines
    text = "\n".join(lines)
    assert (
        text.index("USER vpmu")
        < text.index("vpmu compile")
        < text.index("HEALTHCHECK")
        < text.index("ENTRYPOINT")
    )
    assert "NUMBA_CPU_NAME=${CPU_NAME}" in text
    assert "NUMBA_CPU_FEATURES=${CPU_FEATURES}" in text
