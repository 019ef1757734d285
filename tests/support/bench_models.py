"""Models for the harness of `vitfast bench`: each pass writes down that it ran."""

import os
from pathlib import Path

import numpy as np


class Logged:
    """Appends "name pass" to a file, and to another the states of the processes of all models."""

    def __init__(self, name, folder):
        self.name, self.folder = name, Path(folder)
        (self.folder / f"{name}.pid").write_text(str(os.getpid()))
        self.passes = {each: lambda each=each: self.run(each) for each in ("forward", "gradient")}

    def run(self, each):
        if each == "gradient":
            self.kept = np.ones(25_000_000)  # 200 MB
        others = [p for p in self.folder.glob("*.pid") if p.stem != self.name]
        states = [Path(f"/proc/{p.read_text()}/stat").read_text().split()[2] for p in others]
        with open(self.folder / "log", "a") as log:
            log.write(f"{self.name} {each} {''.join(sorted(set(states)))}\n")

    def memory(self):
        return {"forward_temp": 7}


def logged(case, device, *, name, folder):
    return Logged(name, folder)


def raises(case, device):
    raise ValueError("no such model\nand more of it")


def dies(case, device):
    os._exit(5)


def dies_when_visited(case, device):
    model = Logged.__new__(Logged)
    calls = []

    def run():
        calls.append(None)
        if len(calls) > 1:
            os._exit(6)

    model.passes = {"forward": run}
    return model
