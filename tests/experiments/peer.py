"""A process of a run that does nothing but agree with the others, until it is told to leave.

    python tests/experiments/peer.py --config.distributed=ADDRESS,COUNT,INDEX PATIENCE [FAULT]

FAULT, of the last process: error, raises one; leave, ends in order a moment before the others.
"""

import sys
import time

import jax

from experiments import devices, peers

jax.config.update("jax_platforms", "cpu")
setting, patience, *fault = sys.argv[1:]
peers.PATIENCE = float(patience)
devices.initialize_distributed(setting.partition("=")[2])
last = jax.process_index() == jax.process_count() - 1
with peers.watched():
    devices.all_agree(True)
    print("ready", flush=True)
    if fault == ["leave"]:
        time.sleep(0 if last else 2 * peers.PATIENCE)
    elif fault == ["error"] and last:
        raise ValueError("of one process only")
    else:
        while devices.all_agree(True):
            time.sleep(0.01)
print("left", flush=True)
