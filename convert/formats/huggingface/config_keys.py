"""The keys of a config.json that change nothing in what the network computes, and why not."""

# Why, and the keys of which that is so.
_REASONS = {
    "it is a name, a version or a class": """
        _name_or_path name_or_path architectures transformers_version is_llama_config
        transformers.js_config unsloth_fixed unsloth_version tokenizer_class _commit_hash finetuning_task
        """,
    "it names code that transformers runs only if it is asked to trust it": "auto_map",
    "the weights say it": "dtype torch_dtype",
    "it is read with the tokenizer, or not used": """
        bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id prefix
        """,
    "it is for training": """
        attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout dropout initializer_range
        gradient_checkpointing use_gradient_checkpointing neftune_noise_alpha
        """,
    "it chooses between programs that compute the same": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal
        attn_implementation _flash_attn_2_enabled _use_flash_attention_2 use_flash_attention use_flash_attn
        _experts_implementation _experts_implementation_internal experts_implementation
        use_cache cache_implementation torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward
        pretraining_tp
        """,
    "it says what transformers returns": """
        return_dict output_hidden_states output_attentions tie_last_hidden_states
        """,
    "it is for another task": """
        id2label label2id num_labels problem_type task_specific_params is_decoder
        cross_attention_hidden_size tie_encoder_decoder
        """,
    "it is for generation, and given again where text is generated": """
        max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams
        num_beam_groups diversity_penalty temperature top_k top_p min_p top_h typical_p epsilon_cutoff
        eta_cutoff penalty_alpha repetition_penalty encoder_repetition_penalty length_penalty
        no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids
        forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens
        num_return_sequences output_scores output_logits return_dict_in_generate
        remove_invalid_values exponential_decay_length_penalty renormalize_logits guidance_scale
        sequence_bias stop_strings max_time token_healing num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
        target_lookbehind prompt_lookup_num_tokens
        """,
    "folders whose weights are quantised so are recognised before": "quantization",
}
WITHOUT_EFFECT = {key: reason for reason, keys in _REASONS.items() for key in keys.split()}

# Keys that may only have a value under which they change nothing; null is one for each but the first.
FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_interleaved": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
    "sliding_window": (None,),
    "pruned_heads": ({}, None),
    "per_layer_config": ({}, None),
}
