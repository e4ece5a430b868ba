# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rank arithmetic of tensor, pipeline and expert parallelism, with upstream's rules and upstream's errors."""

from __future__ import annotations

from typing import Any


class Mapping:
    """Where one rank stands in a world of tp_size * pp_size ranks.

    Ranks are numbered pp-major: rank = pp_rank * tp_size + tp_rank, and inside a stage tp_rank = moe_tp_rank *
    moe_ep_size + moe_ep_rank. A size of -1 for either MoE dimension means "derive it from the other".
    """

    def __init__(
        self,
        world_size: int = 1,
        rank: int = 0,
        *,
        tp_size: int = 1,
        pp_size: int = 1,
        cp_size: int = 1,
        moe_tp_size: int = -1,
        moe_ep_size: int = -1,
    ) -> None:
        for name, value in (("tp_size", tp_size), ("pp_size", pp_size), ("cp_size", cp_size)):
            if value < 1:
                raise ValueError(f"{name} must be a positive integer, but got {value}.")
        for name, value in (("moe_tp_size", moe_tp_size), ("moe_ep_size", moe_ep_size)):
            if value < 1 and value != -1:
                raise ValueError(f"{name} must be a positive integer, or -1 to derive it, but got {value}.")
        if moe_tp_size == -1 and moe_ep_size == -1:
            moe_tp_size, moe_ep_size = tp_size, 1
        elif moe_tp_size == -1:
            moe_tp_size = tp_size // moe_ep_size
        elif moe_ep_size == -1:
            moe_ep_size = tp_size // moe_tp_size
        if tp_size * pp_size * cp_size != world_size:
            raise ValueError(
                "world_size must equal to tp_size * pp_size * cp_size, "
                f"but got {world_size} != {tp_size} * {pp_size} * {cp_size}."
            )
        if moe_tp_size * moe_ep_size != tp_size:
            raise ValueError(
                f"tp_size must equal to moe_tp_size * moe_ep_size, but got {tp_size} != {moe_tp_size} * {moe_ep_size}"
            )
        if moe_ep_size != 1 and cp_size > 1:
            raise NotImplementedError("CP don't support MoE tp/ep yet")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be between 0 and {world_size - 1}, but got {rank}.")
        self.world_size = world_size
        self.rank = rank
        self.tp_size = tp_size
        self.pp_size = pp_size
        self.cp_size = cp_size
        self.moe_tp_size = moe_tp_size
        self.moe_ep_size = moe_ep_size

    @classmethod
    def from_dict(cls, data: dict[str, Any], rank: int = 0) -> Mapping:
        """The mapping recorded in a checkpoint's or an engine's config, seen from the given rank."""
        tp_size = int(data.get("tp_size", 1))
        pp_size = int(data.get("pp_size", 1))
        cp_size = int(data.get("cp_size", 1))
        return cls(
            int(data.get("world_size", tp_size * pp_size * cp_size)),
            rank,
            tp_size=tp_size,
            pp_size=pp_size,
            cp_size=cp_size,
            moe_tp_size=int(data.get("moe_tp_size", -1)),
            moe_ep_size=int(data.get("moe_ep_size", -1)),
        )

    def to_dict(self) -> dict[str, int]:
        return {
            "world_size": self.world_size,
            "tp_size": self.tp_size,
            "pp_size": self.pp_size,
            "moe_tp_size": self.moe_tp_size,
            "moe_ep_size": self.moe_ep_size,
        }

    def at(self, rank: int) -> Mapping:
        """The same topology from another rank."""
        return Mapping(
            self.world_size,
            rank,
            tp_size=self.tp_size,
            pp_size=self.pp_size,
            cp_size=self.cp_size,
            moe_tp_size=self.moe_tp_size,
            moe_ep_size=self.moe_ep_size,
        )

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // (self.tp_size * self.cp_size)

    @property
    def moe_tp_rank(self) -> int:
        return self.tp_rank // self.moe_ep_size

    @property
    def moe_ep_rank(self) -> int:
        return self.tp_rank % self.moe_ep_size

    @property
    def is_first_pp_rank(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_pp_rank(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def pp_layers(self, num_layers: int) -> range:
        """The model's layers (global numbers) that this rank's stage holds."""
        per_stage = num_layers // self.pp_size
        return range(self.pp_rank * per_stage, (self.pp_rank + 1) * per_stage)

    def ep_experts(self, num_experts: int) -> range:
        """The experts (global numbers) that this rank holds, whole or in slices."""
        per_rank = num_experts // self.moe_ep_size
        return range(self.moe_ep_rank * per_rank, (self.moe_ep_rank + 1) * per_rank)

    def kv_head_range(self, num_kv_heads: int) -> range:
        """The KV heads of this rank; with more ranks than heads each head is duplicated over neighbouring ranks."""
        if self.tp_size > num_kv_heads:
            head = self.tp_rank // (self.tp_size // num_kv_heads)
            return range(head, head + 1)
        per_rank = num_kv_heads // self.tp_size
        return range(self.tp_rank * per_rank, (self.tp_rank + 1) * per_rank)

    def check_model(
        self, *, num_layers: int, num_heads: int, num_kv_heads: int, intermediate_size: int, num_experts: int
    ) -> None:
        """Raise ValueError when the model cannot be cut this way."""
        if num_heads % self.tp_size:
            raise ValueError(
                f"num_attention_heads {num_heads} is not divisible by tp_size {self.tp_size}: "
                "choose a tp_size that divides it"
            )
        larger, smaller = max(num_kv_heads, self.tp_size), min(num_kv_heads, self.tp_size)
        if larger % smaller:
            raise ValueError(
                f"num_key_value_heads {num_kv_heads} and tp_size {self.tp_size} must divide one another: "
                "KV heads are either split evenly or duplicated evenly"
            )
        if num_layers % self.pp_size:
            raise ValueError(
                f"num_hidden_layers {num_layers} is not divisible by pp_size {self.pp_size}: "
                "choose a pp_size that divides it"
            )
        if intermediate_size % self.moe_tp_size:
            raise ValueError(
                f"intermediate_size {intermediate_size} is not divisible by moe_tp_size {self.moe_tp_size}: "
                "choose a moe_tp_size that divides it"
            )
        if num_experts % self.moe_ep_size:
            raise ValueError(
                f"num_experts {num_experts} is not divisible by moe_ep_size {self.moe_ep_size}: "
                "choose a moe_ep_size that divides it"
            )
