"""AOTInductor: the model compiled to a shared library beforehand, no guards at run time."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting, at_least_two_rows


class AotInductor(Backend):
    """``torch.export`` with a free batch, ``aoti_compile_and_package``, ``aoti_load_package``."""

    name = "AOTInductor"
    casts_model = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Exports, compiles and loads."""
        self._device = setting.device
        free = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(model, (at_least_two_rows(x),), dynamic_shapes=free)
        with TemporaryDirectory() as folder:
            path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2"))
            self._model = torch._inductor.aoti_load_package(path)

    def run(self, x: Tensor) -> Tensor:
        """The loaded library's call."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{self._device}, inductor ahead of time"
