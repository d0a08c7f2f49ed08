"""The files of `examples/clusters` follow their operators' schemas, and the commands in them start a training."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from torch.distributed.run import get_args_parser

from recipes.clusters.cluster import FORWARDED_SIGNALS
from recipes.launch import planned

FOLDER = Path(__file__).parents[2] / "examples" / "clusters"
SCHEMAS = Path(__file__).parent / "cluster_schemas"
EXAMPLES = sorted(FOLDER.iterdir())
MANIFESTS = [path for path in EXAMPLES if path.name.startswith("kubernetes")]
KUBERNETES_VARIABLES = {
    "RANK": "1", "MASTER_ADDR": "multisagd-master-0", "MASTER_PORT": "23456", "JOB_COMPLETION_INDEX": "1"
}  # fmt: skip
"""What the operators and Kubernetes set in the second of two pods."""


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def errors(path: Path, document: dict[str, Any]) -> list[str]:
    """Return how a document differs from the schema of an example."""
    pod = json.loads((SCHEMAS / "pod.json").read_text(encoding="utf-8"))
    schema = json.loads((SCHEMAS / f"{path.stem}.json").read_text(encoding="utf-8"))
    registry = Registry().with_resource("pod.json", Resource.from_contents(pod))
    for each in (pod, schema):
        Draft202012Validator.check_schema(each)
    return [error.message for error in Draft202012Validator(schema, registry=registry).iter_errors(document)]


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Return all mappings of a document, from the outside in."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(each)


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pods of a manifest."""
    return [each for each in mappings(document) if "containers" in each]


def torchrun_words(path: Path, tmp_path: Path) -> list[str]:
    """Return the words that torchrun gets on the second node of an example."""
    document = read(path)
    if path in MANIFESTS:
        (container,) = pods(document)[-1]["containers"]
        command = [kubernetes_word(word, KUBERNETES_VARIABLES) for word in container["command"]]
        assert command[0] == "torchrun"
        return command[1:]
    program = tmp_path / "multisagd" / "bin" / "torchrun"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    variables = {
        "HOME": str(tmp_path), "PATH": os.environ["PATH"], "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": str(document["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": document["resources"]["accelerators"].split(":")[1],
    }  # fmt: skip
    ran = subprocess.run(["bash", "-c", document["run"]], env=variables, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def kubernetes_word(word: str, variables: dict[str, str]) -> str:
    """Replace $(NAME) by the variable and $$ by $, as Kubernetes does in commands."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda found: variables[found[2]] if found[2] else "$", word)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cluster_example_follows_its_schema_which_refuses_misspelt_keys(path: Path) -> None:
    """Names of resources and variables are not in the schema."""
    assert errors(path, read(path)) == []
    for number, mapping in enumerate(mappings(read(path))):
        for key in mapping:
            if key in ("cpu", "memory", "nvidia.com/gpu") or key.isupper():
                continue
            document = json.loads(json.dumps(read(path)))  # what is one object by an alias becomes two
            changed = list(mappings(document))[number]
            changed[f"{key}x"] = changed.pop(key)
            assert errors(path, document), f"{path.name} with {key}x"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cluster_example_starts_a_training_on_two_nodes_with_eight_gpus(path: Path, tmp_path: Path) -> None:
    options = get_args_parser().parse_args(torchrun_words(path, tmp_path))
    assert (options.nnodes, options.nproc_per_node, int(options.node_rank)) == ("2", "8", 1)
    assert options.master_addr in ("multisagd-master-0", "multisagd-node-0-0.multisagd", "10.0.0.1")
    assert options.signals_to_handle == FORWARDED_SIGNALS
    assert options.module
    assert options.training_script == "recipes.cli"
    command, *words = options.training_script_args
    _, (job,) = planned([f"command={command}", "cluster=local", "cluster.processes=16", *words])
    assert job.words == tuple(words)
    assert any(word.startswith("run_dir=/runs/") for word in words)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_pods_have_a_volume_shared_memory_and_time_to_save(path: Path) -> None:
    for pod in pods(read(path)):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert "persistentVolumeClaim" in mounted["/runs"]
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        (timeout,) = [each["value"] for each in container["env"] if each["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        assert int(timeout) < pod["terminationGracePeriodSeconds"]
        assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["command"]


def test_kubernetes_examples_have_the_pods_that_torchrun_waits_for() -> None:
    replicas = read(FOLDER / "kubernetes_pytorchjob.yaml")["spec"]["pytorchReplicaSpecs"]
    assert {name: replica["replicas"] for name, replica in replicas.items()} == {"Master": 1, "Worker": 1}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]

    document = read(FOLDER / "kubernetes_jobset.yaml")
    name, (job,) = document["metadata"]["name"], document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (2, 2, "Indexed")
    assert spec["backoffLimit"] == 0
    assert f"--master-addr={name}-{job['name']}-0-0.{name}" in pods(document)[0]["containers"][0]["command"]
    assert kubernetes_word("$(RANK) $$(RANK) $RANK", {"RANK": "1"}) == "1 $(RANK) $RANK"


def test_skypilot_example_has_valid_shell_lines() -> None:
    task = read(FOLDER / "skypilot.yaml")
    for lines in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", lines], check=True)
