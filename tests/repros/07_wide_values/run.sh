#!/bin/bash
# TIFFs of floats or 32-bit integers must not come out black without a word.
. "$(dirname "$0")/../common/lib.sh"
"$PY" - <<'PY' || fault "see above"
import io, sys
import numpy as np
from PIL import Image
from tll_jax.data.imaging import BrokenImage, decode
ramp, wrong = np.linspace(0, 255, 200).reshape(10, 20), []
for name, values in {"0 to 1": (ramp / 255).astype(np.float32), "0 to 255": ramp.astype(np.float32), "int32": ramp.astype(np.int32)}.items():
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    try:
        if decode(buffer.getvalue(), "x.tif").max() < 100:
            wrong.append(f"{name}: black")
    except BrokenImage:
        pass
sys.exit("\n".join(wrong) or 0)
PY
right "shown or refused"
