"""Every field that exists, with the values of the paper's CIFAR-10 run where they are the paper's.

A choice of code is a subtree {name, **keywords}; changing it means replacing the whole subtree, so
that no keyword of the old choice stays behind. The other files of this folder say how a data set
differs; `ablations.py` says how a row of a table does, and `published.py` what it gave there. What
a field may hold is in `ranges.py`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The base config, without a data set."""
    config = ConfigDict()
    config.seed = 0  # of everything: initialisation, batches, noise, dropout
    config.distributed = "off"  # off | auto (from the cluster) | HOST:PORT,NUM_PROCESSES,PROCESS_ID
    # Devices that share a batch, and those among them that also share one copy of parameters,
    # moments and average (FSDP); 0 is what is left. fsdp = 1: every device has all of them.
    config.mesh = ConfigDict(dict(data=0, fsdp=1))
    # Of float32 products in training and sampling: default (TF32 on GPU and bfloat16 on TPU, as the
    # original trained) | high | highest. Likelihoods and distances always take the highest.
    config.precision = "default"

    config.checkpoint = "latest"  # to sample and evaluate: latest | best (of the validations)

    # The kind of generative model: diffusion | vae (kl_weight, kl_warmup_steps; vae_base.py)
    config.method = dict(name="diffusion")
    # Of what it is a model: pixels | vae (workdir, checkpoint: its step, 0 the newest), the latents
    # of a trained VAE
    config.encoder = dict(name="pixels")
    # What is modelled. name: digits | fashion_mnist | cifar10 | celeb_a_hq/256 | image_folder |
    # emoji
    config.data = ConfigDict(dict(name="digits"))
    config.data.data_dir = config_dict.placeholder(str)  # None: $TFDS_DATA_DIR or TFDS's own folder
    config.loader = ConfigDict()
    config.loader.in_memory = True  # decode the whole data set once, at the start
    config.loader.num_workers = 0  # reading processes; 0 reads in threads
    config.loader.num_threads = 4  # reading threads (of each process)
    config.loader.prefetch = 8  # batches read ahead

    # What the network is told in words: none | words (vocabulary, length, width, depth, num_heads,
    # dropout), of a data set with captions
    config.text = dict(name="none")

    # The chain: linear | quadratic | sigmoid | constant | jsd | warmup10 | warmup50 | cosine |
    # array (betas). Or, as in the ablation `flow`, a section `path` in its place, continuous time
    # (num_timesteps: levels of its bound and figures): straight (start) | edm (noise_min,
    # noise_max) | vp (beta_min, beta_max, start) | cosine or linear_snr (log_snr_min, log_snr_max)
    config.schedule = dict(name="linear", num_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    # What the network predicts: mu | x_0 | eps | v | edm (sigma_data) | velocity (of paths)
    config.parameterization = dict(name="eps")
    # Of p(x_{t-1} | x_t): fixed_small | fixed_large | learned | learned_range
    config.variance = dict(name="fixed_large")

    # simple (weighting, space) | vlb (scale) | hybrid (vlb_coefficient, weighting, space).
    # Weightings: uniform | vlb | min_snr (gamma). Spaces, what is compared: output (what the
    # network predicts) | mu | x_0 | eps | v | edm | velocity
    config.loss = dict(name="simple", weighting=dict(name="uniform"), space=dict(name="output"))
    # How t is drawn: uniform | loss_second_moment (history, uniform_share); of a path also
    # antithetic | learned (parts, history, uniform_share) | log_normal (mean, std, weigh) |
    # logit_normal (mean, std, shift, weigh)
    config.timesteps = dict(name="uniform")

    # unet, or dit (patch_size, hidden_size, depth, num_heads, mlp_ratio, and dropout,
    # fourier_features, class_conditional, label_dropout, remat and dtype as here)
    config.model = ConfigDict(dict(name="unet"))
    config.model.channels = 128  # width of the first level
    config.model.channel_multipliers = (1, 2, 2, 2)  # widths of the levels, in `channels`
    config.model.num_blocks = 2  # residual blocks per level
    config.model.attention_resolutions = (16,)  # heights at which every block gets attention
    config.model.cross_attention_resolutions = ()  # heights at which blocks attend to the words
    config.model.dropout = 0.1  # inside every residual block
    config.model.num_heads = 1  # of the attention
    config.model.attention_head_dim = 0  # channels of a head; 0: num_heads heads
    config.model.norm_groups = 32  # of every GroupNorm
    config.model.norm_eps = 1e-6  # added to the variances of every GroupNorm
    config.model.flip_sin_to_cos = False  # cosines before sines in the time embedding
    config.model.freq_shift = 1  # its frequencies are 10000^(-i / (channels / 2 - freq_shift))
    # Of what halves images: 0 pads at the bottom and right, 1 on every side
    config.model.downsample_padding = 0
    # n of sin, cos(2^n pi x_t) beside x_t: (7, 8) is VDM's for 256 levels; () is none
    config.model.fourier_features = ()
    config.model.class_conditional = False  # give the network the labels
    config.model.label_dropout = 0.0  # share of labels that training replaces by "no label"
    config.model.remat = False  # recompute activations in the backward pass to save memory
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16

    # adam, or rmsprop (as adam up to final_learning_rate, then decay, momentum, eps)
    config.optimizer = ConfigDict(dict(name="adam"))
    config.optimizer.learning_rate = 2e-4  # after warm-up
    config.optimizer.warmup_steps = 5000  # linear from 0; 0 is none
    # Updates after which half a cosine from there ends; 0 keeps the rate
    config.optimizer.cosine_steps = 0
    config.optimizer.final_learning_rate = 0.0  # at the end of the cosine
    config.optimizer.weight_decay = 0.0  # AdamW's, of every parameter, times the rate
    config.optimizer.b1 = 0.9  # decay of the first moment
    config.optimizer.b2 = 0.999  # decay of the second moment
    config.optimizer.eps = 1e-8  # added to the root of the second moment
    config.optimizer.epsilon_hat = True  # before bias correction (the original), or after (optax)
    # none | global (max_norm) | per_core (max_norm, num_cores): the original's TPU had 8 cores
    config.clip = dict(name="per_core", max_norm=1.0, num_cores=8)
    config.ema_decay = 0.9999  # per step, from the initial parameters
    # p > 0: the decay of update n is at most 1 - n^-p (1: the mean of all at first); 0: ema_decay
    config.ema_warmup = 0.0

    config.train = ConfigDict()
    config.train.batch_size = 128  # over all devices and processes
    config.train.accumulate_steps = 1  # parts of a batch, one after the other, to save memory
    config.train.num_steps = 800_000  # optimizer steps in all
    config.train.balance = "images"  # drawn evenly: images | labels | subjects (of captions)
    config.train.flip = True  # mirror each training image with probability 1/2
    config.train.steps_per_call = 10  # steps per dispatch; the other cadences are its multiples
    config.train.log_every = 100  # steps between lines of metrics; every save has one too
    # Beside metrics.jsonl, separated by commas: tensorboard | wandb (an extra, offline); "" is none
    config.train.log_to = "tensorboard"
    config.train.preview_every = 10_000  # steps between PNG grids of EMA samples; 0 is never
    config.train.preview_images = 64  # images in such a grid
    config.train.preview_num_steps = 100  # sampling steps behind it; 0 is every timestep
    config.train.validate_every = 0  # steps between validations, which keep the best; 0 is never
    config.train.validate_with = "bpd_fast"  # bpd_fast | samples (distance to the train split)
    # Of a validation: images held out of train, which nothing is trained on, or samples
    config.train.validate_images = 250
    config.train.checkpoint_every = 5_000  # steps between checkpoints
    config.train.keep_checkpoints = 2  # how many of the latest stay
    config.train.keep_every = 0  # steps whose multiples stay for good; 0: none
    # A loss that is not finite ends the run as diverged; so does one above this bound; 0 sets none
    config.train.diverged_above = 0.0
    config.train.diverged_for = 1_000  # steps for which the loss must stay above that bound
    config.train.finish_with = ("sample", "evaluate")  # modes that follow the last step

    config.sample = ConfigDict()
    # ancestral | ddim (eta) | dpm_solver_pp (order) | unipc (order) | heun | flow (tolerance,
    # max_steps) | annealed_langevin (steps_per_level, step_size) | predictor_corrector
    # (corrector_steps, step_size): docs/samplers.md; of a path also euler | heun_u | heun_churn
    # (churn, churn_min, churn_max, churn_noise)
    config.sample.sampler = dict(name="ancestral")
    config.sample.num_steps = 0  # of the walk; 0 is every timestep, and the flow's 10 stops
    # Its timesteps: auto (the sampler's own: trailing of dpm_solver_pp and unipc, else uniform) |
    # uniform | quadratic (share) | leading (offset) | trailing | array (timesteps). Of a path: auto
    # (its own, or log_snr where a sampler needs it) | uniform | trailing | karras (rho) | log_snr
    config.sample.spacing = dict(name="auto")
    # Of the estimate of x_0: clip to [-1, 1] | percentile (quantile, most) | none
    config.sample.threshold = dict(name="clip")
    # Of a model trained with and without labels: 1 is the conditional one, 0 the other
    config.sample.guidance_scale = 1.0
    # The timesteps, or u of a path, (first, last) that it guides; () is all
    config.sample.guidance_interval = ()
    config.sample.num_images = 256  # how many samples
    # Of a model that is told captions: prompts, separated by commas, or by ; where there is one
    config.sample.prompts = ""
    # Of a class-conditional model: all (in turn) | none (as without labels) | classes by number or
    # name, like 3 or 3,cats
    config.sample.labels = "all"
    config.sample.batch_size = 256  # drawn at a time, over all devices
    config.sample.format = "npz"  # npz | png, a file an image
    config.sample.images_per_file = 10_000  # of an npz
    config.sample.progress_images = 8  # rows of the progressive-generation picture
    config.sample.progress_columns = 11  # estimates of x_0 in each row

    config.evaluate = ConfigDict()
    # Separated by commas: bpd | bpd_fast | baselines | ode | samples | chain, of a path
    # bpd_continuous, of a VAE elbo, of a model of latents latent_bound
    config.evaluate.metrics = "bpd,baselines"
    config.evaluate.split = "test"  # test | train
    config.evaluate.num_images = 1000  # the first n of the split; 0 is all
    config.evaluate.batch_size = 250  # at a time, over all devices
    config.evaluate.clip_denoised = True  # clip the estimate of x_0 to [-1, 1]
    config.evaluate.decoder = "tanh"  # L_0's Gaussian: tanh (the original's approximation) | exact
    config.evaluate.num_draws = 1  # of the noise behind bpd, for an error bar over them
    config.evaluate.timesteps_per_call = 100  # of bpd, in one dispatch
    config.evaluate.timesteps_at_once = 1  # of bpd, in one call of the network
    config.evaluate.num_importance = 64  # of elbo: draws of z behind each image
    # Of bpd_fast: timesteps of each image, beside 0; of bpd_continuous: points of the path
    config.evaluate.num_strata = 50
    # Of ode: uniform noise inside each level | decoder, the chain's, which needs no such noise
    config.evaluate.ode_dequantization = "uniform"
    config.evaluate.ode_tolerance = 1e-5  # relative and absolute, of a step of the ODE's solver
    config.evaluate.ode_probes = 1  # random vectors behind each divergence
    config.evaluate.ode_max_steps = 1000  # of the solver, for one image
    # Of features: auto (inception where its weights are) | inception | classifier
    config.evaluate.extractor = "auto"
    # None: $DDPM_INCEPTION_WEIGHTS, or the cache folder
    config.evaluate.inception_weights = config_dict.placeholder(str)
    # An npz of mu and sigma to compare samples with as well
    config.evaluate.reference = config_dict.placeholder(str)
    # paper | repository | edm fix the next five; custom: as here
    config.evaluate.protocol = "custom"
    config.evaluate.num_samples = 1000  # drawn for `samples` and `chain`
    config.evaluate.quantize = "round"  # samples to 256 levels: round | floor | none
    config.evaluate.num_splits = 10  # of the inception score
    config.evaluate.num_sets = 1  # of samples; the one of the smallest distance counts
    config.evaluate.drop = 1  # round the numbers of real images down to a multiple of this
    config.evaluate.chain_points = 11  # of `chain`: times at which the estimate of x_0 is judged

    config.figures = ConfigDict()
    # all, or names separated by commas: samples | classes | prompts | progressive |
    # shared_latents | interpolation | interpolation_by_time | inpainting | quality | decoding |
    # neighbours | reconstructions | traversals | latent_grid | latent_interpolation | forward |
    # schedule | reverse; of ideas, and no part of all: consistency | ring | tangents | one_step |
    # pixel_error
    config.figures.names = "all"
    config.figures.rows = 6  # of a grid
    config.figures.columns = 8  # of a grid; of the sample grid also its rows
    config.figures.num_samples = 500  # behind the figure `quality`
    config.figures.resamplings = 5  # of inpainting: how often each stretch is walked
    return config
