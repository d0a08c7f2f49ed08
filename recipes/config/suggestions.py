"""Messages for unreadable commands and unknown keys, with the remedy."""

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from recipes.base.commands import CONFIGURED, setting
from recipes.base.errors import nearest
from recipes.config.groups import KeyTable, groups, offered, opened, prefixes

MEANINGS: dict[tuple[str, ...], str] = {
    ("training.learning_rate", "classifier.learning_rate"): "lr learning_rate learningrate base_lr max_lr initial_lr",
    ("training.batch", "batch"): "batch_size batchsize bs train_batch_size minibatch mini_batch per_device_batch_size "
    "per_device_train_batch_size eval_batch_size",
    ("training.accumulation",): "grad_accum accumulate gradient_accumulation gradient_accumulation_steps "
    "accumulate_grad_batches accum_iter",
    ("training.samples",): "epoch epochs num_epochs n_epochs max_epochs num_train_epochs max_steps train_steps "
    "num_train_steps max_train_steps total_steps iters iterations num_iterations max_iters kimg",
    ("training.warmup",): "warmup_steps lr_warmup_steps num_warmup_steps warmup_iters lr_warmup warmup_epochs",
    ("training.weight_decay",): "wd decay l2 weightdecay adam_weight_decay",
    ("training.clip",): "grad_clip clip_grad gradient_clip gradient_clip_val max_grad_norm clip_norm grad_norm",
    ("training.ema", "weights"): "ema use_ema ema_decay ema_rate ema_beta",
    ("training.condition_dropout",): "p_uncond uncond_prob cond_drop_prob class_dropout_prob label_dropout",
    ("training.initial",): "pretrained finetune fine_tune init_from load_from pretrained_model",
    ("every.checkpoint",): "save_every save_interval save_steps save_freq checkpoint_every checkpointing_steps "
    "checkpoint_interval ckpt_every",
    ("every.log",): "log_every log_interval log_freq logging_steps log_steps log_every_n_steps print_freq print_every",
    ("every.samples",): "sample_every sample_interval sample_steps sample_freq",
    ("every.validation",): "val_every val_interval val_check_interval eval_every eval_interval eval_steps eval_freq",
    ("keep",): "save_total_limit save_top_k keep_last keep_checkpoints max_checkpoints checkpoints_total_limit",
    ("validation.root",): "val_dir val_data_dir val_root val_path valid_dir validation_dir eval_dir eval_data_dir",
    ("validation.group",): "group_by groups split_by",
    ("validation.holdout",): "val_split valid_split val_fraction val_size test_size validation_split val_ratio",
    ("validation.score",): "monitor metric_for_best_model best_metric",
    ("validation.patience",): "early_stop early_stopping early_stopping_patience",
    ("count", "samples", "training.samples"): "n num number n_samples num_samples nsamples num_images n_images images",
    ("count",): "samples",
    ("steps", "sampling.steps", "training.samples"): "steps num_steps n_steps nsteps num_inference_steps "
    "inference_steps sampling_steps sample_steps ddim_steps nfe timesteps num_timesteps",
    ("sampler", "schedule"): "scheduler solver sampling_method sample_method",
    ("schedule",): "noise_schedule beta_schedule noise_scheduler",
    ("guidance.scale",): "cfg cfg_scale cfg_weight guidance_scale guidance_strength classifier_free_guidance",
    ("labels", "data.labels"): "class class_label class_labels class_id label classes y",
    ("prompts",): "prompt text_prompt captions",
    ("initial",): "init_image init_img image input_image init_audio init_video source_image img2img",
    ("unknown",): "mask mask_image mask_file inpaint_mask",
    ("strength",): "denoising_strength denoise img2img_strength",
    ("weights",): "use_ema_weights which",
    ("engine.device",): "gpu gpus num_gpus n_gpus ngpu cuda device devices accelerator device_id use_cuda",
    ("engine.precision",): "fp16 bf16 fp32 float16 bfloat16 half amp use_amp mixed_precision autocast use_fp16",
    ("engine.workers",): "num_workers n_workers nworkers dataloader_num_workers data_workers loader_workers",
    ("engine.threads",): "num_threads n_threads cpu_threads",
    ("engine.compile",): "torch_compile use_compile",
    ("engine.recompute",): "gradient_checkpointing grad_checkpointing activation_checkpointing use_checkpoint",
    ("tracking",): "logger log_with report_to use_wandb wandb_project use_tensorboard tb",
    ("seed",): "random_seed manual_seed rng_seed global_seed",
    ("network", "run_dir"): "model arch architecture backbone net unet model_type",
    ("network.width",): "base_channels model_channels ngf hidden_size hidden_dim dim num_channels",
    ("modality.size",): "image_size img_size imagesize resolution res crop_size",
    ("spectrum",): "noise noise_type noise_color noise_colour color colour",
    ("data",): "dataset dataset_name data_set",
    ("data.root",): "data_dir data_path datadir data_root dataroot dataset_dir dataset_path train_dir train_data_dir "
    "image_dir image_folder images_dir input input_dir root_dir",
    ("data.urls",): "shards urls train_shards tars",
    ("checkpoint", "run_dir"): "checkpoint ckpt checkpoint_path ckpt_path checkpoint_dir ckpt_dir model_path "
    "resume_from_checkpoint load_checkpoint",
    ("run_dir",): "resume resume_from resume_training continue run rundir work_dir workdir exp_dir exp_name "
    "log_dir logdir logging_dir",
    ("out", "run_dir"): "o output outputs outdir outputdir output_dir output_path out_dir out_path save_dir "
    "save_path save_to results_dir result_dir",
    ("license",): "licence",
}  # fmt: skip
"""For each tuple of equivalent keys here, names of the setting in other programs; a command has some of the keys."""

SYNONYMS: dict[str, tuple[str, ...]] = {}
"""The keys for each name in other programs; an ambiguous name has several keys."""
for _keys, _words in MEANINGS.items():
    for _word in _words.split():
        SYNONYMS[_word] = tuple(dict.fromkeys((*SYNONYMS.get(_word, ()), *_keys)))


def word(arguments: Sequence[str], index: int) -> str | None:
    """Return a message if the argument at `index` cannot be a setting, or None if it may be one."""
    argument, after = arguments[index], "".join(arguments[index + 1 : index + 2])
    before = arguments[index - 1] if index else ""
    dashes = re.match(r"[-–—]+", argument)
    if dashes and not argument[len(dashes[0]) :][:1].isdigit():
        key, _, value = argument[len(dashes[0]) :].replace("-", "_").partition("=")
        typed = _typed(key, value or after)
        return f"unknown option {argument}; settings are written key=value without dashes: {typed}"
    if before.count("[") > before.count("]") or before.count("{") > before.count("}"):
        return f"a space ended {before!r}: quote a value that contains spaces, as in '{before} {argument}'"
    if argument == "" or argument.isspace():
        return f"an argument is empty{f' after {before!r}' if before else ''}: is a shell variable unset?"
    if "=" in argument.strip("=") or argument.startswith("~"):
        return None
    bare = argument.strip("=")
    if argument.endswith("=") and bare:
        if after and "=" not in after:
            return f"a space ended {argument!r}: write {_typed(bare, after)}, without a space"
        return f"{argument} has no value: write {bare}=null for none, or '{bare}=\"\"' for an empty string"
    if bare and re.fullmatch(r"[\w.]+", bare) and after == "=":
        return f"write no spaces around the equals sign: {_typed(bare, ''.join(arguments[index + 2 : index + 3]))}"
    if bare and (Path(bare).exists() or "/" in bare or "\\" in bare):
        either = " or ".join(setting(key, bare) for key in ("run_dir", "data.root"))
        return f"cannot read {argument!r}: settings are written key=value; is it {either}?"
    if bare in CONFIGURED:
        return f"cannot read {argument!r}: the command comes first; for `multisagd launch`, write command={bare}"
    key, _, value = bare.partition(":")
    value = value or (after if "=" not in after else "")
    hint = f", as in {_typed(key, value)}" if re.fullmatch(r"[\w.]+", key) else ""
    return f"cannot read {argument!r}: settings are written key=value or group=choice{hint}"


def unreadable(argument: str, reason: str) -> str:
    """Return the remedy for a setting that Hydra's grammar rejects."""
    key, _, value = argument.partition("=")
    problem = f"cannot read the command: {argument!r}"
    if re.search("[“”‘’„«»]", argument):
        return f"{problem} has typographic quotation marks: use ' and \""
    if value.startswith("="):
        return f"{problem}: one equals sign is enough"
    if value.startswith("~"):
        return f"{problem}: ~ is not expanded here; write {key}=$HOME{value[1:]}"
    if re.fullmatch(r"\(.*,.*\)", value):
        return f"{problem}: a list is written {key}=[{value[1:-1]}]"
    for opening, closing in ("[]", "{}"):
        if value.count(opening) != value.count(closing):
            return f"{problem}: {opening} and {closing} do not match"
    quoted = shlex.quote(f'{key}="{value}"')
    return f"{problem} ({reason}). Quote the value, and quote the entire setting again for the shell: {quoted}"


def unknown(command: str, override: Override, keys: Mapping[str, Any], folder: str | Path | None) -> str:
    """Return the message for an unknown key of a command, with the closest of `keys` and groups."""
    key = override.key_or_group
    have, mine, own_groups = prefixes(keys), groups(folder), set(offered(command))
    group, _, name = key.rpartition(".")
    # The key often exists in another choice of its group.
    if group in own_groups and (having := _having(name, group, mine, folder)):
        return f"{key} does not belong to the chosen {group}; it is a key of {', '.join(having)}"
    if key in mine and key not in own_groups:
        choices = f"its groups are {', '.join(sorted(own_groups))}" if own_groups else "it has no groups"
        kept = "A run keeps the choices that it was trained with"
        moved = "; data.root=… sets the current location of its data" if key in opened(command) else ""
        return f"`multisagd {command}` does not choose {key}: {choices}. {kept}{moved}"
    below = {f"{each}.{part}" for each in opened(command) for part in ("root", "urls")}
    last = name.lower().replace("-", "_")
    # A misspelt group name is a better hint than the names of other programs.
    for other in get_close_matches(key, have, cutoff=0.85) if group else ():
        if other.rpartition(".")[2] == name:
            return f"unknown key {key!r}; did you mean {other!r}?"
    meant = [other for other in SYNONYMS.get(last, ()) if other in have | own_groups | below and other != key]
    same = [] if group else sorted(each for each in have if each.rpartition(".")[2] == key)
    # An identical key comes last if the word means something else in other programs, as steps does.
    if likely := [*dict.fromkeys([*meant[:2], *same])]:
        return f"unknown key {key!r}; did you mean {' or '.join(map(repr, likely[:3]))}?{_remark(last, likely[0])}"
    for other in (key, *SYNONYMS.get(last, ())):
        group, _, name = other.rpartition(".")
        if other == key and group:
            continue
        for each in {group} & own_groups if group else sorted(own_groups):
            if having := _having(name, each, mine, folder):
                value = "…" if override.is_sweep_override() else override.get_value_element_as_str()
                return f"unknown key {key!r}; it is {each}.{name}={value} with {', '.join(having[:5])}"
    near = nearest(key, [*have, *own_groups])
    return f"unknown key {key!r}{near or f'; `multisagd {command} --help` lists the keys'}"


def _having(key: str, group: str, mine: Mapping[str, Sequence[str]], folder: str | Path | None) -> list[str]:
    """Return the choices of a group that have a setting with the name `key`."""
    key_table = KeyTable({}, folder)
    return [f"{group}={choice}" for choice in mine.get(group, ()) if key in key_table.file(choice, group)]


def refused(error: HydraException, overrides: Sequence[Override]) -> str:
    """Return the first line of a Hydra error, with the remedy if it is a common one."""
    first = " ".join(str(error).splitlines()[0].split())
    for override in overrides:
        line = override.input_line or ""
        if first.startswith("Ambiguous value") and line in first:
            key, _, value = line.partition("=")
            return (
                f"{first}: a list is written {key}=[{value.strip()}], text with commas '{key}=\"{value.strip()}\"', "
                "and a number without commas; to start one run for each of several values, use `multisagd launch`"
            )
    if "appears more than once" in first and (added := [each for each in overrides if each.is_add()]):
        return f"{first}: remove the + of {added[0].input_line}"
    if first.startswith(("Error merging override", "Could not override")):
        return f"{first}: the key takes a value of another kind; a list is written [a,b], a group of keys {{key:value}}"
    return first


def _typed(key: str, value: str) -> str:
    """Return a setting as it is typed into a shell, with the value as the user wrote it."""
    return shlex.quote(f"{key}={value}") if value else f"{key}=…"


def _remark(word: str, other: str) -> str:
    if other == "training.samples":
        return " Training is counted in samples seen: examples × epochs, or steps × batch"
    if other == "engine.device" and word in ("gpus", "num_gpus", "n_gpus", "ngpu", "devices"):
        return " For several GPUs, use `multisagd launch cluster.gpus=…`"
    return " The same command on the same run_dir continues" if word.startswith("resume") else ""
