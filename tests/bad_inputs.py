"""Damaged pictures, command lines and config files, made at random: see `reliability.py`."""

import contextlib
import dataclasses
import io
import json
import random
import shutil
import sys
from unittest import mock

import numpy as np
from helpers import TINY, encoded
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook
from tqdm import tqdm

from hsnet import HSNet, evaluate, predict, train
from hsnet.config import Config, run_program
from hsnet.paths import data_folder
from hsnet.pictures import read_image

SETTINGS = {option.name: option for option in dataclasses.fields(Config)}
# Wrong values of settings: of a kind, of those with choices, of a name.
NUMBERS = ["", "x", "--", "1,5", "-7", "1e400", "-1e9", "nan", "9" * 23, "0x10", "None", "ten", "𝟙x"]
WRONG = {
    float: NUMBERS,
    int: [*NUMBERS, "1.5", "2.0", "inf"],
    "choices": ["", "x", "None", "COCO!", "0", "paper ", "ünïcode", "a" * 1000, "'; rm -rf /"],
    "backbone": ["", "x", "resnet7", "timm:", "timm:nobody", "timm:../up", "ünïcode", "a" * 1000],
    "start": ["no-such-run", "../nowhere", "/etc", "n" * 300, "ünïcode", "a/b"],
    "name": ["../up", "a/b", "..", ".", "/etc", "n" * 300, "x/"],
    "shot": ["", "0", "-1", "a", "1,,2", "1,x", "5000", "1.5", ","],
    "device": ["", "gpu", "cuda:99", "meta", "tpu", "cuda:x", "cpu:x"],
    "augment": ["x", "None", ",", "mirror,x"],
}


def measure_pictures(count: int, seed: int = 0) -> dict:
    """Damage picture files at random: each is read, or refused by an error that names the file."""
    rng = random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    kinds = "jpeg RGB, jpeg CMYK, png RGBA, png P, webp RGB, gif P, bmp RGB, tiff L"
    kinds = [kind.split() for kind in kinds.split(", ")]
    pictures = [(suffix, encoded(Image.fromarray(pixels).convert(mode), suffix)) for suffix, mode in kinds]
    result = {"tried": count, "read": 0, "refused_by_name": 0, "other": []}
    for _ in range(count):
        suffix, content = rng.choice(pictures)
        content = bytearray(content)
        for _ in range(rng.choice((0, 1, 20))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path = data_folder() / f"picture.{suffix}"
        path.write_bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.5 else content)
        try:
            read_image(path)
            result["read"] += 1
        except Exception as error:
            named = isinstance(error, (ValueError, OSError)) and str(path) in str(error)
            result["refused_by_name"] += named
            result["other"] += [repr(error)] * (not named)
    return result


def _wrong(option):
    """The wrong values of a setting that there are."""
    choices = option.metadata["choices"]
    values = WRONG.get(option.name) or WRONG.get("choices" if choices else option.type, [])
    return [value for value in values if value not in map(str, choices or ())]  # 0 is a fold


def _bad_line(rng):
    """A program, a command line that it must refuse, and what its message must name."""
    option = rng.choice([option for option in SETTINGS.values() if _wrong(option)])
    flag = "--" + option.name.replace("_", "-")
    switch = rng.choice(["--recompute", "--pretrained", "--mask-support"])
    wrong, value = rng.choice(["--shot 0", "--shot x", "--fold x", "--test-episodes many"]).split()
    word = "".join(rng.choices("qzxjv", k=9))
    setting = "train", [f"{flag}={rng.choice(_wrong(option))}"], [option.name, flag]
    program, line, names = rng.choice(
        [
            ("train", ["--" + word, "1"], [word]),
            ("train", [flag], [option.name, flag]),  # its value is missing
            ("train", [f"{switch}=perhaps"], [switch]),
            ("evaluate", [word, *rng.choice([[], ["--shot", "5"]])], [word]),
            ("evaluate", ["whole", wrong, value], [wrong]),
            ("predict", ["--support", word + ".jpg", "--query", word + ".jpg"], [word]),
            setting,
            setting,
        ]
    )
    tiny = [f"--{name}={TINY[name]}" for name in ("benchmark", "size") if name != option.name]
    return program, tiny * (program == "train") + line, names


def _bad_config(rng):
    """Text or bytes that are no `config.json`, and what the message must name."""
    content = dataclasses.asdict(Config(**TINY))
    name = rng.choice([o.name for o in SETTINGS.values() if o.type is not str or o.metadata["choices"]])
    text, word = json.dumps(content), "".join(rng.choices("qzxjv", k=6))
    bad = rng.choice([None, [], {}, "x", [1], {"a": 1}, float("nan"), 1e300, -1e300, "", 10**30])
    setting = json.dumps(content | {name: bad}).encode(), name
    rubbish = rng.choice([b"\xff\xfe\x00", b"", b"[]", b"null", b"3", b'"text"', b"{,}"])
    cut = text[: rng.randrange(len(text))].encode()
    unknown = json.dumps(content | {word: 1}).encode()
    return rng.choice([(unknown, word), (cut, "config.json"), (rubbish, "config.json"), setting, setting])


def measure_inputs(count: int, seed: int = 0) -> dict:
    """Random bad command lines and config files: each is refused in words that name the option or setting."""
    programs = {"train": train.main, "evaluate": evaluate.main, "predict": predict.main}
    rng = random.Random(seed)
    result = {"tried": count, "command_lines": 0, "config_files": 0, "refused_by_name": 0, "other": []}
    folder = shutil.copytree(data_folder() / "runs" / "whole", data_folder() / "runs" / "bad")

    def accepted(module, _):
        if isinstance(module, HSNet):  # building a network calls the modules of its backbone, too
            raise AssertionError("a bad input was taken for a good one")

    hook = register_module_forward_pre_hook(accepted)
    for i in tqdm(range(count), desc="inputs", unit="input"):
        if i % 5 < 3:
            program, line, names = _bad_line(rng)
            result["command_lines"] += 1
        else:
            content, name = _bad_config(rng)
            (folder / "config.json").write_bytes(content)
            program, line, names = "evaluate", ["bad"], [name]
            result["config_files"] += 1
        errors, status, argv = io.StringIO(), 0, mock.patch.object(sys, "argv", [program, *line])
        try:
            with argv, contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                run_program(programs[program])
        except SystemExit as end:
            status = end.code
        except Exception as error:
            errors.write(f"Traceback: {error!r}")
        message = errors.getvalue().replace("usage:", "").rpartition("error: ")[2]
        if status == 2 and any(name in message for name in names):
            result["refused_by_name"] += 1
        else:
            result["other"].append({"program": program, "line": line, "status": status, "message": message[-400:]})
    hook.remove()
    shutil.rmtree(folder)
    return result
