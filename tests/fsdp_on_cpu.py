"""Runs a recipe under FSDP2 over gloo, and fails if it did not; Accelerate gives CPUs nothing but DDP."""

import runpy
import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

if __name__ == "__main__":
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)  # type: ignore
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    state = AcceleratorState()
    assert state.is_fsdp2 and state.num_processes == 2 and state.device.type == "cpu", state
