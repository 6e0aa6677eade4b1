"""The optimizer: Coupled Adam as a superset of ``torch.optim.AdamW``.

The life of one step (``CoupledAdamW.step`` in coupled_adamw.py), in the order in which it happens:

1. **Whether at all.** Torch's own check refuses a step that is captured in a graph without
   ``capturable=True``; then the closure runs. Parameters, gradients and states of all groups are
   compared (checks.py): shapes, devices, options. What does not belong together is refused here,
   before anything has moved; a parameter that is stepped for the first time gets its state.
2. **Reading.** Of each coupled matrix this process takes its part (sharding.py: a whole matrix, a
   DTensor's shard, a plain shard), turned so that tokens come first (``vocabulary_dim``), and sums
   the squares of the gradient over its tokens, one number for each of H columns. That is the first
   of two sweeps: in C (native.py, step.c), in Triton (kernel.py) or in PyTorch's operations. C and
   Triton get raw pointers, so memory.py says first whether the three matrices lie alike.
3. **Travelling.** Where tokens are spread over processes, one all-reduce of the sums of all coupled
   matrices starts (sharding.Reduction). Nobody waits for it yet.
4. **The others.** Groups that are not coupled are stepped meanwhile, by torch's own function.
5. **The H numbers.** The sums have arrived and are divided by the number of all tokens. The shared
   second moment, a vector of H numbers in float32, moves towards them. From it, the step count
   and the learning rate come H factors: minus the rate over the bias correction of the first
   moment and over the root of the corrected second one, plus eps.
6. **Writing.** The second sweep, by the same implementation: the first moment moves towards the
   gradient, and each row of the matrix by weight decay and by its first moment times the factors.
   All tokens have the same factors, which is what keeps the sum of their updates at zero.

groups.py and vocabulary.py find a model's token embeddings, transfer.py takes an AdamW's state over
and gives it back, reference.py is the same optimizer as plain loops, which the tests hold all of
this against.
"""

from coupled_adam.optim.coupled_adamw import CoupledAdamW
from coupled_adam.optim.groups import param_groups
from coupled_adam.optim.transfer import transfer_state

__all__ = ["CoupledAdamW", "param_groups", "transfer_state"]
