"""What other programs call things, and the key that means the same here."""

from __future__ import annotations

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
    ("validation.holdout",): "val_split valid_split val_fraction val_size test_size validation_split val_ratio",
    ("count", "samples", "training.samples"): "n num number n_samples num_samples nsamples num_images n_images images",
    ("count",): "samples",
    ("steps", "sampling.steps", "training.samples"): "steps num_steps n_steps nsteps num_inference_steps "
    "inference_steps sampling_steps sample_steps ddim_steps nfe timesteps num_timesteps",
    ("sampler", "schedule"): "scheduler solver sampling_method sample_method",
    ("schedule",): "noise_schedule beta_schedule noise_scheduler",
    ("guidance.scale",): "cfg cfg_scale cfg_weight guidance_scale guidance_strength classifier_free_guidance",
    ("labels", "data.labels"): "class class_label class_labels class_id label classes y",
    ("prompts",): "prompt text_prompt captions",
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
"""By keys that mean the same thing, of which a command has some: the words that people try, without their group."""

SYNONYMS: dict[str, tuple[str, ...]] = {}
"""The keys for a word; one that means several things has those of all."""
for _keys, _words in MEANINGS.items():
    for _word in _words.split():
        SYNONYMS[_word] = tuple(dict.fromkeys((*SYNONYMS.get(_word, ()), *_keys)))
