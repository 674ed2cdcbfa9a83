"""Processes share the GPUs of a machine out among them."""

from __future__ import annotations

import multiprocessing
import tempfile

from maskloom.segcore.deep.inference import runtime


def claim(count, answers, release):
    answers.put(runtime._claim_gpu(count))
    release.wait(60)


def test_each_process_has_a_gpu_of_its_own_while_there_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runtime._settings, "claims", {})
    assert runtime._claim_gpu(2) == 0
    assert runtime._claim_gpu(2) == 0, "a process that asks again keeps its own"
    # Not by fork: a child would inherit the lock.
    context = multiprocessing.get_context("spawn")
    answers, release = context.Queue(), context.Event()
    for count, expected in ((2, 1), (1, 0)):
        process = context.Process(target=claim_below, args=(str(tmp_path), count, answers, release))
        process.start()
        assert answers.get(timeout=60) == expected
    release.set()
    runtime._settings.claims[0].close()


def claim_below(folder, count, answers, release):
    tempfile.tempdir = folder
    claim(count, answers, release)
