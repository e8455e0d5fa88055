#!/bin/bash
# EXIF that cannot be parsed must not cost the picture, with transparency as without.
. "$(dirname "$0")/../common/lib.sh"
"$PY" - <<'PY' || fault "see above"
import io, sys
from PIL import Image
from tll_jax.data.imaging import BrokenImage, decode
wrong = []
for kind in ("PNG", "WEBP"):
    for mode in ("RGB", "RGBA"):
        buffer = io.BytesIO()
        Image.new(mode, (20, 10)).save(buffer, kind, exif=b"garbage")
        try:
            decode(buffer.getvalue(), "x")
        except BrokenImage as error:
            wrong.append(f"{kind} {mode}: {error}")
sys.exit("\n".join(wrong) or 0)
PY
right "all read"
