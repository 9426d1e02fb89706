"""Networks of their real size, and the memory of a large image."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tasks.segmentation.going_on import trains_resumes_and_loads

FACTS = {
    "class_names": [f"class {i}" for i in range(19)], "palette": [[i, i, i] for i in range(19)], "ignore_index": 255,
    "head": "upernet", "channels": None, "decoder_dropout": 0.1, "aux": True, "short_side": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "cures"),
    [
        ("vit_small_patch16_224", ""),
        ("vit_small_patch14_reg4_dinov2", ""),
        ("swin_tiny_patch4_window7_224", ""),
        ("deepvit_s_patch16_224", ""),
        ("vit_small_patch16_224", "reattention"),
    ],
)
def test_two_steps_of_one_image_at_an_odd_size(tmp_path, model, cures):
    trains_resumes_and_loads(tmp_path / "run", 233, model=model, model_args={}, cures=cures)


LARGE = """
import re, torch
from deepvit import tasks
from deepvit.training.build import build_model
from deepvit.training.config import TrainConfig
from tasks.segmentation.test_full_size import FACTS

problem = tasks.Segmentation(FACTS)
config = TrainConfig(task="segmentation", model="deepvit_s_patch16_224", scene={"crop_size": 512})
network, card = build_model(config, problem, None)
with torch.inference_mode():
    found = problem.infer(network.eval(), torch.randn(1, 3, 1025, 2049))
assert found.shape == (1, 19, 1025, 2049)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.slow
def test_a_large_image_is_predicted_under_three_gigabytes():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, cwd="tests")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 3e9
