"""The files of `examples/clusters` follow their operators' schemas, and the commands in them start a training."""

import json
import os
import re
import subprocess
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
VARIABLES = {"RANK": "1", "MASTER_ADDR": "multisagd-master-0", "MASTER_PORT": "23456", "JOB_COMPLETION_INDEX": "1"}
"""What the operators and Kubernetes set in the second of two pods."""


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def pods(value: Any) -> list[dict[str, Any]]:
    """Return the pods of a manifest."""
    if isinstance(value, dict) and "containers" in value:
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [pod for each in inner for pod in pods(each)]


def kubernetes_word(word: str) -> str:
    """Replace $(NAME) by the variable and $$ by $, as Kubernetes does in commands."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda found: VARIABLES[found[2]] if found[2] else "$", word)


def torchrun_words(path: Path, tmp_path: Path) -> list[str]:
    """Return the words that torchrun gets on the second node of an example."""
    document = read(path)
    if path in MANIFESTS:
        (container,) = pods(document)[-1]["containers"]
        assert container["command"][0] == "torchrun"
        return [kubernetes_word(word) for word in container["command"][1:]]
    program = tmp_path / "multisagd" / "bin" / "torchrun"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    subprocess.run(["bash", "-n", "-c", document["setup"]], check=True)
    variables = {
        "HOME": str(tmp_path), "PATH": os.environ["PATH"], "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": str(document["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": document["resources"]["accelerators"].split(":")[1],
    }  # fmt: skip
    ran = subprocess.run(["bash", "-c", document["run"]], env=variables, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cluster_example_follows_its_schema(path: Path) -> None:
    pod = json.loads((SCHEMAS / "pod.json").read_text(encoding="utf-8"))
    schema = json.loads((SCHEMAS / f"{path.stem}.json").read_text(encoding="utf-8"))
    registry = Registry().with_resource("pod.json", Resource.from_contents(pod))
    for each in (pod, schema):
        Draft202012Validator.check_schema(each)
    validator = Draft202012Validator(schema, registry=registry)
    assert [error.message for error in validator.iter_errors(read(path))] == []
    assert not validator.is_valid({**read(path), "misspelt": 1})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cluster_example_starts_a_training_on_two_nodes_with_eight_gpus(path: Path, tmp_path: Path) -> None:
    options = get_args_parser().parse_args(torchrun_words(path, tmp_path))
    assert (options.nnodes, options.nproc_per_node, int(options.node_rank)) == ("2", "8", 1)
    assert options.master_addr in ("multisagd-master-0", "multisagd-node-0-0.multisagd", "10.0.0.1")
    assert options.signals_to_handle == FORWARDED_SIGNALS
    assert (options.module, options.training_script) == (True, "recipes.cli")
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
    (job,) = read(FOLDER / "kubernetes_jobset.yaml")["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (2, 2, "Indexed")
    assert spec["backoffLimit"] == 0
