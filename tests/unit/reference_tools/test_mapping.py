# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from tensorrtllm_reference.mapping import Mapping


def test_coordinates_of_every_rank() -> None:
    mapping = Mapping(8, tp_size=4, pp_size=2, moe_tp_size=2, moe_ep_size=2)
    seen = [
        (at.pp_rank, at.tp_rank, at.moe_tp_rank, at.moe_ep_rank) for at in (mapping.at(rank) for rank in range(8))
    ]
    assert seen == [
        (0, 0, 0, 0), (0, 1, 0, 1), (0, 2, 1, 0), (0, 3, 1, 1),
        (1, 0, 0, 0), (1, 1, 0, 1), (1, 2, 1, 0), (1, 3, 1, 1),
    ]
    assert [mapping.at(rank).is_first_pp_rank for rank in (0, 3, 4)] == [True, True, False]
    assert [mapping.at(rank).is_last_pp_rank for rank in (3, 4, 7)] == [False, True, True]


def test_what_each_rank_holds() -> None:
    mapping = Mapping(8, tp_size=4, pp_size=2, moe_ep_size=4)
    assert [list(mapping.at(rank).ep_experts(8)) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert list(mapping.at(5).pp_layers(6)) == [3, 4, 5]
    assert [list(mapping.at(rank).kv_head_range(8)) for rank in range(2)] == [[0, 1], [2, 3]]
    assert [list(mapping.at(rank).kv_head_range(2)) for rank in range(4)] == [[0], [0], [1], [1]]


@pytest.mark.parametrize(
    ("given", "resolved"), [((-1, -1), (4, 1)), ((2, -1), (2, 2)), ((-1, 4), (1, 4)), ((1, 4), (1, 4))]
)
def test_moe_sizes_are_derived(given: tuple[int, int], resolved: tuple[int, int]) -> None:
    mapping = Mapping(4, tp_size=4, moe_tp_size=given[0], moe_ep_size=given[1])
    assert (mapping.moe_tp_size, mapping.moe_ep_size) == resolved


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tp_size": 4, "moe_tp_size": 3, "moe_ep_size": 2},
         "tp_size must equal to moe_tp_size * moe_ep_size, but got 4 != 3 * 2"),
        ({"tp_size": 4, "moe_ep_size": 3}, "tp_size must equal to moe_tp_size * moe_ep_size, but got 4 != 1 * 3"),
        ({"tp_size": 2}, "world_size must equal to tp_size * pp_size * cp_size, but got 4 != 2 * 1 * 1."),
        ({"tp_size": 0}, "tp_size must be a positive integer, but got 0."),
        ({"tp_size": 4, "moe_ep_size": 0}, "moe_ep_size must be a positive integer, or -1 to derive it, but got 0."),
        ({"tp_size": 4, "rank": 4}, "rank must be between 0 and 3, but got 4."),
    ],
)
def test_impossible_worlds(keywords: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Mapping(4, **keywords)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 6}, "num_attention_heads 6 is not divisible by tp_size 4"),
        ({"num_kv_heads": 3}, "num_key_value_heads 3 and tp_size 4"),
        ({"num_kv_heads": 6, "num_heads": 12}, "num_key_value_heads 6 and tp_size 4"),
        ({"num_layers": 3}, "num_hidden_layers 3 is not divisible by pp_size 2"),
        ({"intermediate_size": 7}, "intermediate_size 7 is not divisible by moe_tp_size 2"),
        ({"num_experts": 7}, "num_experts 7 is not divisible by moe_ep_size 2"),
    ],
)
def test_models_that_cannot_be_cut(changes: dict[str, int], named: str) -> None:
    mapping = Mapping(8, tp_size=4, pp_size=2, moe_tp_size=2, moe_ep_size=2)
    sizes = {"num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 8, "num_experts": 8}
    mapping.check_model(**sizes)
    with pytest.raises(ValueError) as error:
        mapping.check_model(**{**sizes, **changes})
    assert str(error.value).startswith(named)


def test_round_trip_through_a_config() -> None:
    mapping = Mapping(8, 5, tp_size=4, pp_size=2, moe_tp_size=1, moe_ep_size=4)
    again = Mapping.from_dict(mapping.to_dict(), 5)
    assert vars(again) == vars(mapping)
