"""`splitnet.build` in several processes: `torchrun --nproc-per-node 2 tests/rank_build.py OUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import small
from safetensors.torch import save_file

import splitnet

torch.set_num_threads(1)
net = splitnet.build(small("alexnet"), seed=4).eval()
images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
output = net(images)
state = net.whole_state_dict()
other = splitnet.build(small("alexnet"), seed=5).eval()
other.load_whole_state_dict(splitnet.build(small("alexnet"), devices=["cpu"], seed=4).whole_state_dict())
again = other(images)
assert torch.equal(output, again)
try:
    splitnet.build(small("alexnet", 1))
except splitnet.UsageError as error:
    refused = str(error)
rank = dist.get_rank()
told = f"rank {rank}: output {tuple(output.shape)}, {len(state)} tensors, {len(net.hosted)} tower; {refused}\n"
sys.stdout.write(told)
sys.stdout.flush()
if rank == 0:
    save_file({"output": output.detach(), **state}, Path(sys.argv[1]) / "built.safetensors")
dist.destroy_process_group()
