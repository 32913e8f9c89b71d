"""Mutants: places whose numbers would be wrong without an error, and the tests that claim them.

For `python -m tests.mutants`.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A place of the program, broken, and the tests of which one must fail then.

    name: what is wrong with it.
    text, instead: a part of `file` that it has exactly once, and what is put in its place.
    tests: files or node ids of pytest, blanks between them; the cheapest that see it.
    """

    name: str
    file: str
    text: str
    instead: str
    tests: str


MUTANTS = (
    # --- Schedules ---
    Mutant(
        "cosine_one_step_short",
        "diffusion/schedules.py",
        "dtype=np.float64) / num_timesteps",
        "dtype=np.float64) / (num_timesteps + 1)",
        "tests/diffusion/test_schedules.py::test_cosine_follows_its_alpha_bar",
    ),
    Mutant(
        "posterior_mean_of_x_0_at_t",
        "diffusion/schedules.py",
        "posterior_mean_x_0=betas * np.sqrt(alpha_bar_prev) / one_minus",
        "posterior_mean_x_0=betas * np.sqrt(alpha_bar) / one_minus",
        "tests/diffusion/test_forward.py::test_the_posterior_is_bayes_rule",
    ),
    Mutant(
        "log_variance_begins_with_beta",
        "diffusion/schedules.py",
        "np.concatenate([posterior_variance[1:2], posterior_variance[1:]])",
        "np.concatenate([betas[:1], posterior_variance[1:]])",
        "tests/diffusion/test_schedules.py::test_published_values_of_the_linear_schedule",
    ),
    Mutant(
        "respacing_skips_a_step",
        "diffusion/schedules.py",
        "np.concatenate([[0], kept[:-1] + 1])",
        "np.concatenate([[0], kept[:-1]])",
        "tests/diffusion/test_schedules.py::test_respacing_keeps_the_marginals",
    ),
    Mutant(
        "steps_of_a_path_forget_its_signal",
        "diffusion/paths.py",
        "-(noise[:-1] ** 2) * np.expm1(2.0 * np.diff(log_ratio))",
        "noise[:-1] ** 2 * (1.0 - (noise[:-1] / noise[1:]) ** 2)",
        "tests/diffusion/test_paths.py::test_a_grid_has_the_posterior_of_its_steps",
    ),
    # --- Paths, their times and samplers ---
    Mutant(
        "bound_of_a_path_by_the_ratio",
        "diffusion/losses.py",
        "slope = -now.signal * fall / now.noise**3",
        "slope = -fall / now.noise**2",
        "tests/diffusion/test_path_laws.py"
        "::test_the_bound_of_ever_more_steps_is_that_of_continuous_time",
    ),
    Mutant(
        "edms_input_of_another_variance",
        "diffusion/parameterizations.py",
        "return 1.0 / jnp.sqrt(now.noise**2 + (sigma_data * now.signal) ** 2)",
        "return 1.0 / jnp.sqrt(now.noise**2 + now.signal**2)",
        "tests/diffusion/test_path_laws.py::test_edms_inputs_and_targets_have_variance_1",
    ),
    Mutant(
        "velocity_of_the_noise_alone",
        "diffusion/parameterizations.py",
        "return d_signal * x_0 + d_noise * eps",
        "return d_noise * eps",
        "tests/diffusion/test_path_laws.py::test_velocity_is_the_derivative_of_x",
    ),
    Mutant(
        "a_shift_that_multiplies_the_logit",
        "diffusion/times.py",
        "mean + std * n + math.log(shift)",
        "shift * (mean + std * n)",
        "tests/diffusion/test_times.py",
    ),
    Mutant(
        "log_normal_weighed_without_its_slope",
        "diffusion/times.py",
        "density = slope * jnp.exp(-0.5 * n**2)",
        "density = jnp.exp(-0.5 * n**2)",
        "tests/diffusion/test_times.py"
        "::test_two_densities_of_u_with_compensating_weights_have_one_mean",
    ),
    Mutant(
        "heun_in_u_with_the_first_slope_twice",
        "diffusion/path_samplers.py",
        "velocity(denoise(guess, t - 1), t - 1, x_t)",
        "velocity(denoise(guess, t - 1), t, x_t)",
        "tests/diffusion/test_path_walks.py::test_every_solver_has_its_order_on_every_path",
    ),
    Mutant(
        "churn_that_adds_the_whole_noise",
        "diffusion/path_samplers.py",
        "higher**2 - now**2",
        "higher**2",
        "tests/diffusion/test_sampler_laws.py::test_it_draws_the_data",
    ),
    Mutant(
        "a_paths_end_at_deviation_1",
        "diffusion/walk.py",
        "return start(sampler, deviation * normal(keys, 0, shape), recorded)",
        "return start(sampler, normal(keys, 0, shape), recorded)",
        "tests/diffusion/test_path_walks.py::test_a_walk_from_the_paths_own_end_has_the_datas_moments",
    ),
    Mutant(
        "a_paths_prior_at_deviation_1",
        "diffusion/likelihood.py",
        "jnp.asarray(2.0 * np.log(deviation), jnp.float32)",
        "jnp.zeros(())",
        "tests/diffusion/test_path_laws.py"
        "::test_the_chain_of_a_path_is_a_tight_bound_with_the_true_reverse_step",
    ),
    Mutant(
        "a_paths_chain_forgets_its_signal",
        "diffusion/schedules.py",
        "posterior_mean_x_t=ratio * (noise_prev / noise) ** 2",
        "posterior_mean_x_t=(noise_prev / noise) ** 2",
        "tests/diffusion/test_path_walks.py::test_one_step_back_on_a_path_is_bayes_rule",
    ),
    # --- The step back, guidance ---
    Mutant(
        "learned_range_upside_down",
        "diffusion/variances.py",
        "v * now.log_beta + (1.0 - v) * now.posterior_log_variance",
        "(1.0 - v) * now.log_beta + v * now.posterior_log_variance",
        "tests/diffusion/test_reverse.py::test_learned_range_spans_the_two_fixed_variances",
    ),
    Mutant(
        "eps_of_the_estimate_before_clipping",
        "diffusion/reverse.py",
        "eps = (x_t - now.signal * x_0)",
        "eps = (x_t - now.signal * parameterization.decode(now, value, x_t))",
        "tests/diffusion/test_reverse.py::test_clipping_moves_every_mean_but_a_predicted_one",
    ),
    Mutant(
        "network_told_the_short_chains_t",
        "diffusion/reverse.py",
        "jnp.broadcast_to(now.told.ravel(), x_t.shape[:1])",
        "jnp.broadcast_to(t, x_t.shape[:1])",
        "tests/diffusion/test_reverse.py::test_the_network_is_told_the_original_timesteps",
    ),
    Mutant(
        "guidance_from_the_conditional_end",
        "diffusion/guidance.py",
        "mean = second[..., :channels] + scale",
        "mean = first[..., :channels] + scale",
        "tests/diffusion/test_guidance.py::test_scale_1_is_the_conditional_network_and_0_the_other",
    ),
    Mutant(
        "guidance_interval_without_its_last",
        "diffusion/guidance.py",
        "(model_t <= last)",
        "(model_t < last)",
        "tests/diffusion/test_guidance.py::test_outside_its_interval_nothing_is_guided",
    ),
    # --- Samplers, completion ---
    Mutant(
        "start_and_last_step_share_noise",
        "diffusion/walk.py",
        "normal(keys, 1 + t + draw * sampler.num_steps,",
        "normal(keys, t + draw * sampler.num_steps,",
        "tests/diffusion/test_samplers.py"
        "::test_x_T_is_the_same_for_every_length_and_no_other_noise_repeats_it",
    ),
    Mutant(
        "draws_of_neighbouring_steps_overlap",
        "diffusion/walk.py",
        "normal(keys, 1 + t + draw * sampler.num_steps,",
        "normal(keys, 1 + t + draw * (sampler.num_steps - 1),",
        "tests/diffusion/test_samplers.py"
        "::test_x_T_is_the_same_for_every_length_and_no_other_noise_repeats_it",
    ),
    Mutant(
        "third_draw_is_the_next_steps_first",
        "diffusion/walk.py",
        "normal(keys, 1 + t + draw * sampler.num_steps,",
        "normal(keys, 1 + 2 * t + draw,",
        "tests/diffusion/test_samplers.py"
        "::test_x_T_is_the_same_for_every_length_and_no_other_noise_repeats_it",
    ),
    Mutant(
        "ddim_noise_by_the_root_of_eta",
        "diffusion/samplers.py",
        "eta * np.sqrt(levels.variance),",
        "np.sqrt(eta * levels.variance),",
        "tests/diffusion/test_samplers.py::test_ddim_keeps_the_marginals_whatever_its_noise",
    ),
    Mutant(
        "heun_corrects_where_it_began",
        "diffusion/samplers.py",
        "denoise(guess, t - 1).eps",
        "denoise(guess, t).eps",
        "tests/diffusion/test_sampler_laws.py"
        "::test_it_ends_where_the_flow_of_gaussian_data_does[heun]",
    ),
    Mutant(
        "langevin_repeats_its_noise",
        "diffusion/samplers.py",
        "noise(first + j)",
        "noise(first)",
        "tests/diffusion/test_sampler_laws.py::test_langevin_ends_in_the_marginal_of_its_level",
    ),
    Mutant(
        "corrector_told_the_level_above",
        "diffusion/samplers.py",
        "langevin(denoise, found.x, t - 1, sigma, noise, 1)",
        "langevin(denoise, found.x, t, sigma, noise, 1)",
        "tests/diffusion/test_gaussian_data.py"
        "::test_a_correction_is_made_at_the_level_below_with_noise_of_its_own",
    ),
    Mutant(
        "corrector_has_the_predictors_noise",
        "diffusion/samplers.py",
        "langevin(denoise, found.x, t - 1, sigma, noise, 1)",
        "langevin(denoise, found.x, t - 1, sigma, noise, 0)",
        "tests/diffusion/test_gaussian_data.py"
        "::test_a_correction_is_made_at_the_level_below_with_noise_of_its_own",
    ),
    Mutant(
        "dpm_solver_slope_by_its_own_step",
        "diffusion/multistep.py",
        "r_0 = (lam[here] - lam[here + 1]) / h",
        "r_0 = 1.0",
        "tests/diffusion/test_sampler_orders.py::test_one_step_of_a_multistep_method_has_its_order",
    ),
    Mutant(
        "unipc_without_the_factorial",
        "diffusion/multistep.py",
        "phi * math.factorial(n + 1) / step",
        "phi * (n + 1) / step",
        "tests/diffusion/test_sampler_orders.py::test_one_step_of_a_multistep_method_has_its_order",
    ),
    Mutant(
        "known_part_one_level_too_noisy",
        "diffusion/inpainting.py",
        "jnp.maximum(level - 2, 0)",
        "level - 1",
        "tests/diffusion/test_inpainting.py::test_the_known_part_always_has_the_noise_of_its_level",
    ),
    Mutant(
        "jump_by_the_level_above",
        "diffusion/inpainting.py",
        "q_step(schedule, x, -level)",
        "q_step(schedule, x, 1 - level)",
        "tests/diffusion/test_inpainting.py::test_the_known_part_always_has_the_noise_of_its_level",
    ),
    Mutant(
        "known_part_has_the_samplers_noise",
        "diffusion/inpainting.py",
        "lambda draw: noise(1 + draw)",
        "noise",
        "tests/diffusion/test_inpainting.py::test_no_noise_is_used_twice",
    ),
    # --- Likelihoods ---
    Mutant(
        "one_bit_is_two_nats",
        "diffusion/likelihood.py",
        "return nats_per_dim / jnp.log(2.0)",
        "return nats_per_dim * jnp.log(2.0)",
        "tests/diffusion/test_likelihood.py::test_one_bit_is_ln_2_nats",
    ),
    Mutant(
        "last_bin_has_an_end",
        "diffusion/likelihood.py",
        "jnp.where(x_0 > 0.999, last, inner)",
        "inner",
        "tests/diffusion/test_likelihood.py::test_the_decoder_sums_to_one_over_the_levels",
    ),
    Mutant(
        "posterior_of_the_step_before",
        "diffusion/likelihood.py",
        "vlb_term(at(schedule, t, x_t), prediction",
        "vlb_term(at(schedule, jnp.maximum(t - 1, 0), x_t), prediction",
        "tests/diffusion/test_gaussian_data.py"
        "::test_the_best_denoisers_bound_is_the_true_likelihood[eps]",
    ),
    Mutant(
        "prior_term_one_step_early",
        "diffusion/likelihood.py",
        "schedule.num_timesteps - 1)",
        "schedule.num_timesteps - 2)",
        "tests/experiments/methods/test_diffusion.py"
        "::test_a_chain_cut_short_shows_in_its_description",
    ),
    Mutant(
        "strata_weighed_alike",
        "diffusion/likelihood.py",
        "jnp.asarray(sizes[:, 0], jnp.float32)",
        "jnp.full(num_strata, (num_timesteps - 1) / num_strata)",
        "tests/diffusion/test_gaussian_data.py::test_strata_cut_the_chain_into_disjoint_parts",
    ),
    Mutant(
        "flow_without_its_divergence",
        "diffusion/probability_flow.py",
        "log_density = prior + integral",
        "log_density = prior - integral",
        "tests/diffusion/test_probability_flow.py"
        "::test_the_best_denoisers_flow_has_the_true_density[eps]",
    ),
    Mutant(
        "flow_prior_without_its_constant",
        "diffusion/probability_flow.py",
        "prior = -0.5 * (square + float(np.log(2.0 * np.pi * flow.deviation**2)))",
        "prior = -0.5 * square",
        "tests/diffusion/test_probability_flow.py"
        "::test_a_flow_that_stands_still_has_the_priors_density",
    ),
    Mutant(
        "vae_divergence_by_the_deviation",
        "diffusion/likelihood.py",
        "jnp.expm1(log_ratio) - log_ratio + jnp.square",
        "jnp.expm1(0.5 * log_ratio) - log_ratio + jnp.square",
        "tests/diffusion/test_vae.py::test_the_divergence_from_the_prior_is_its_integral",
    ),
    Mutant(
        "importance_weights_summed",
        "diffusion/vae.py",
        " - jnp.log(float(len(log_weights)))",
        "",
        "tests/diffusion/test_vae.py::test_importance_sampling_rises_to_the_likelihood",
    ),
    # --- Losses ---
    Mutant(
        "min_snr_keeps_the_larger",
        "diffusion/losses.py",
        "jnp.minimum(snr(now), gamma)",
        "jnp.maximum(snr(now), gamma)",
        "tests/diffusion/test_losses.py::test_min_snr_is_the_published_weight",
    ),
    Mutant(
        "vlb_weight_doubled",
        "diffusion/losses.py",
        "jnp.exp(-log_variance) / 2.0",
        "jnp.exp(-log_variance)",
        "tests/diffusion/test_losses.py::test_the_vlb_weight_of_eps_is_equation_12",
    ),
    Mutant(
        "space_with_eps_the_wrong_way",
        "diffusion/losses.py",
        "-now.signal / now.noise * off",
        "now.signal / now.noise * off",
        "tests/diffusion/test_losses.py"
        "::test_a_loss_in_another_space_is_that_of_a_network_that_predicts_it",
    ),
    Mutant(
        "importance_without_weights",
        "diffusion/times.py",
        "1.0 / (num_timesteps * p)",
        "jnp.ones_like(p)",
        "tests/diffusion/test_times.py"
        "::test_importance_sampling_is_unbiased_and_follows_the_losses",
    ),
    Mutant(
        "importance_by_the_first_moment",
        "diffusion/times.py",
        "jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))",
        "jnp.mean(state.losses, axis=1)",
        "tests/diffusion/test_times.py::test_a_timestep_whose_losses_vary_is_drawn_more_often",
    ),
    Mutant(
        "variance_trains_the_mean",
        "diffusion/losses.py",
        "jax.lax.stop_gradient(value)",
        "value",
        "tests/diffusion/test_losses.py"
        "::test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_simple",
    ),
    Mutant(
        "label_kept_where_it_is_dropped",
        "diffusion/networks/layers.py",
        "jnp.where(drop, self.num_classes, labels)",
        "jnp.where(drop, labels, self.num_classes)",
        "tests/diffusion/networks/test_layers.py"
        "::test_training_drops_that_share_of_the_labels_of_every_class",
    ),
    # --- Training and its data ---
    Mutant(
        "average_warms_up_a_step_late",
        "experiments/optimizers.py",
        "(1.0 + step.astype(jnp.float32))",
        "(2.0 + step.astype(jnp.float32))",
        "tests/experiments/test_optimizers.py"
        "::test_an_average_that_warms_up_is_the_mean_until_the_decay_is_reached",
    ),
    Mutant(
        "cosine_forgets_the_warmup",
        "experiments/optimizers.py",
        "cosine_steps - warmup_steps, end)",
        "cosine_steps, end)",
        "tests/experiments/test_optimizers.py"
        "::test_the_rate_rises_along_a_line_and_falls_along_half_a_cosine",
    ),
    Mutant(
        "clipped_to_the_square_of_the_norm",
        "experiments/optimizers.py",
        "max_norm / norm, 1.0)",
        "max_norm / jnp.square(norm), 1.0)",
        "tests/experiments/test_gradients.py"
        "::test_global_clipping_keeps_the_direction_and_limits_the_norm",
    ),
    Mutant(
        "parts_summed_and_not_averaged",
        "experiments/optimizers.py",
        "lambda x: x / num_parts",
        "lambda x: x",
        "tests/experiments/test_gradients.py::test_parts_of_a_batch_add_up_to_its_gradient",
    ),
    Mutant(
        "average_of_the_parameters_before",
        "experiments/train.py",
        "update_ema(state.ema_params, params, decay)",
        "update_ema(state.ema_params, state.params, decay)",
        "tests/experiments/test_train.py::test_ema_is_the_recursion_from_the_initial_parameters",
    ),
    Mutant(
        "encoder_has_the_chains_noise",
        "experiments/train.py",
        'keys("encoder")',
        'keys("noise")',
        "tests/experiments/methods/test_method.py"
        "::test_every_use_of_randomness_in_training_has_its_own_keys",
    ),
    Mutant(
        "flips_are_upside_down",
        "experiments/images.py",
        "x[:, :, ::-1]",
        "x[:, ::-1]",
        "tests/experiments/test_train.py"
        "::test_flips_noise_and_timesteps_change_with_the_step_and_the_example",
    ),
    Mutant(
        "trained_on_what_is_held_out",
        "experiments/data/dataset.py",
        "Subset(source, np.setdiff1d(every, chosen))",
        "Subset(source, every)",
        "tests/experiments/data/test_data.py"
        "::test_held_out_images_are_evenly_spaced_and_nowhere_else",
    ),
    Mutant(
        "half_of_the_held_out_fraction",
        "experiments/data/image_folder.py",
        "test_fraction * 2**64",
        "test_fraction * 2**63",
        "tests/experiments/data/test_image_folder.py"
        "::test_the_share_that_is_held_out_is_the_one_asked_for",
    ),
    # --- VAEs, latents ---
    Mutant(
        "latents_shifted_after_scaling",
        "experiments/methods/latent.py",
        "(mean - minus) * times",
        "mean * times - minus",
        "tests/experiments/methods/test_latent.py"
        "::test_the_bound_of_both_is_a_likelihood_where_that_is_known",
    ),
    Mutant(
        "latent_bound_without_the_scale",
        "experiments/metrics/elbo.py",
        ".log_variance + 2.0 * jnp.log(latents.scale)",
        ".log_variance",
        "tests/experiments/methods/test_latent.py"
        "::test_the_bound_of_both_is_a_likelihood_where_that_is_known",
    ),
    Mutant(
        "importance_of_one_draw_repeated",
        "experiments/metrics/elbo.py",
        "random.normal(keys, k, vae.latent_shape)",
        "random.normal(keys, 0, vae.latent_shape)",
        "tests/experiments/metrics/test_elbo.py"
        "::test_many_draws_have_the_likelihood_and_their_mean_its_bound",
    ),
    Mutant(
        "active_by_the_deviation",
        "experiments/metrics/elbo.py",
        "means.var(axis=0, ddof=1)",
        "means.std(axis=0, ddof=1)",
        "tests/experiments/metrics/test_elbo.py"
        "::test_a_unit_is_active_where_the_variance_of_its_mean_says_so",
    ),
    # --- Metrics ---
    Mutant(
        "learned_density_not_divided_out",
        "diffusion/times.py",
        "1.0 / (count * width)",
        "jnp.ones_like(width)",
        "tests/diffusion/test_learned_times.py"
        "::test_it_comes_to_the_least_variance_and_keeps_the_mean",
    ),
    Mutant(
        "bound_in_continuous_time_of_the_sphere_only",
        "diffusion/continuous_bound.py",
        "now.signal * square / now.noise**3",
        "now.signal / now.noise**3",
        "tests/diffusion/test_continuous_bound.py::test_it_depends_on_the_ends_of_the_path_only",
    ),
    Mutant(
        "noise_by_the_place_in_the_batch",
        "experiments/metrics/by_image.py",
        "np.arange(first, first + batch_size, dtype=np.int32)",
        "np.arange(batch_size, dtype=np.int32)",
        "tests/experiments/metrics/test_elbo.py::test_an_image_has_the_same_draws_in_any_batch",
    ),
    Mutant(
        "rate_with_its_own_term",
        "experiments/metrics/bound.py",
        "np.concatenate([later[1:], [0.0]])",
        "later",
        "tests/experiments/metrics/test_bound.py::test_evaluation_writes_the_bound_and_its_parts",
    ),
    Mutant(
        "samples_rounded_down",
        "experiments/images.py",
        "* half + (half + 0.5))",
        "* half + half)",
        "tests/experiments/test_sample_evaluate.py"
        "::test_images_survive_the_way_to_the_model_and_back",
    ),
    Mutant(
        "frechet_covariance_with_ddof_0",
        "experiments/features/frechet.py",
        "self.scatter / (self.count - 1)",
        "self.scatter / self.count",
        "tests/experiments/features/test_frechet.py::test_moments_are_numpys",
    ),
    Mutant(
        "frechet_of_unsquared_means",
        "experiments/features/frechet.py",
        "np.square(mean1 - mean2).sum()",
        "np.abs(mean1 - mean2).sum()",
        "tests/experiments/features/test_frechet.py::test_diagonal_covariances_have_a_closed_form",
    ),
    Mutant(
        "inception_score_drops_the_rest",
        "experiments/features/scores.py",
        "logits[i * count // splits : (i + 1) * count // splits]",
        "logits[i * (count // splits) : (i + 1) * (count // splits)]",
        "tests/experiments/features/test_scores.py"
        "::test_it_is_the_definition_on_contiguous_parts_of_any_remainder",
    ),
    Mutant(
        "kernel_distance_biased",
        "experiments/features/scores.py",
        "(k.sum() - np.trace(k)) / (n * (n - 1))",
        "k.mean()",
        "tests/experiments/features/test_scores.py::test_the_kernel_distance_is_a_double_loop",
    ),
)
