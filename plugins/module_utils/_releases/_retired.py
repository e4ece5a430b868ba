# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that people know from elsewhere: gone before 0.12.0, renamed, or never valid."""

from __future__ import annotations

# Last TensorRT-LLM release that had the option, where that is before the first line with a table (commits pinned by
# tensorrtllm_backend v0.7.1 to v0.11.0: exact).
LAST_RELEASE: dict[str, dict[str, str]] = {
    "convert_checkpoint": {
        "ammo_quant_ckpt_path": "0.9.0",
        "dataset_cache_dir": "0.10.0",
        "dense_context_fmha": "0.8.0",
        "enable_fp8": "0.8.0",
        "enable_pos_shift": "0.8.0",
        "hf_lora_dir": "0.8.0",
        "lora_target_modules": "0.8.0",
        "max_lora_rank": "0.8.0",
        "modelopt_quant_ckpt_path": "0.10.0",
        "moe_tp_mode": "0.10.0",
        "rotary_scaling": "0.8.0",
        "storage_type": "0.8.0",
        "use_prompt_tuning": "0.8.0",
    },
    "trtllm_build": {
        "attention_qk_half_accumulation": "0.10.0",
        "context_fmha_fp32_acc": "0.11.0",
        "enable_context_fmha": "0.7.1",
        "enable_context_fmha_fp32_acc": "0.7.1",
        "max_output_len": "0.11.0",
        "multi_block_mode": "0.11.0",
        "strongly_typed": "0.10.0",
        "timing_cache": "0.8.0",
        "use_context_fmha_for_generation": "0.10.0",
        "use_custom_all_reduce": "0.11.0",
        "use_gemm_plugin": "0.7.1",
        "use_gpt_attention_plugin": "0.7.1",
        "use_lookup_plugin": "0.7.1",
        "weight_only_precision": "0.10.0",
    },
    "launch": {},
}

# What to do instead. Each sentence follows the release that lacks the option.
ADVICE: dict[str, dict[str, str]] = {
    "convert_checkpoint": {
        "ammo_quant_ckpt_path": "use quant_ckpt_path",
        "enable_fp8": "use use_fp8 (from 0.13.0) or quantize.py",
        "hf_lora_dir": "give lora_dir to trtllm-build",
        "lora_target_modules": "give it to trtllm-build",
        "max_lora_rank": "give it to trtllm-build",
        "max_input_len": "it belongs to trtllm-build",
        "max_batch_size": "it belongs to trtllm-build",
        "modelopt_quant_ckpt_path": "use quant_ckpt_path",
        "moe_tp_mode": "use moe_tp_size and moe_ep_size, whose product is tp_size",
        "storage_type": "use dtype",
        "use_embedding_sharing": "leave it out, shared embeddings are found by the tool",
        "world_size": "use tp_size and pp_size",
    },
    "trtllm_build": {
        "auto_parallel": "use tp_size and pp_size of convert_checkpoint",
        "builder_force_num_profiles": "leave it out, the library reads it from its environment",
        "builder_opt": "leave it out",
        "cluster_key": "leave it out",
        "context_fmha_fp32_acc": "it is a setting of the runtime now",
        "cp_size": "use cp_size of convert_checkpoint",
        "enable_context_fmha": "use context_fmha",
        "enable_xqa": "leave it out, the kernel is chosen by the library",
        "gpus_per_node": "leave it out",
        "kv_cache_type": "use paged_kv_cache",
        "lookup_plugin": "leave it out",
        "max_output_len": "use max_seq_len (input plus output)",
        "multi_block_mode": "it is a setting of the runtime now",
        "pp_size": "use pp_size of convert_checkpoint",
        "strongly_typed": "leave it out, engines are always strongly typed",
        "timing_cache": "use input_timing_cache and output_timing_cache",
        "tp_size": "use tp_size of convert_checkpoint",
        "use_custom_all_reduce": "leave it out, the library chooses the algorithm",
        "use_gemm_plugin": "use gemm_plugin",
        "use_gpt_attention_plugin": "use gpt_attention_plugin",
        "use_lookup_plugin": "leave it out",
        "weight_only_precision": "give it to convert_checkpoint",
        "world_size": "use tp_size and pp_size of convert_checkpoint",
    },
    "launch": {
        "tp_size": "use world_size (tp_size x pp_size of the engine)",
    },
}
