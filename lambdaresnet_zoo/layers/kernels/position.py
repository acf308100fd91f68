"""Triton kernels of the position part. They keep lambdas in registers and add nothing atomically.

The layer is one product by a matrix that is never written. For a tile of T queries,

    lam[v, (t,k)] = sum_u,m values[u,m,v] * E[u,m, (t,k)]     E is gathered from the table, by offset
    y[v, (t,h)]   = lam[v, (t,k)] @ Q[(t,k), (t,h)]           Q holds query t in its diagonal block t

and every gradient is a chain of the same two products. Q is mostly zeros, yet a product by it runs
where the others do and costs what T * H more positions of context would.

Shapes: N = height * width positions, K query depth, V value depth, U intra-depth, H heads; KP and HP
are K and H rounded up to powers of two. Memory is by position, channels last:

    queries  [B, N, H, K]      table       [rows, columns, U, K], in the dtype of the values
    values   [B, U, N, V]      cotangent   [B, N, H, V], as the output

Tiles: the grid is cut into vertical strips, and each strip, row by row, into tiles, so that what a
tile sees is a small box. Where the table is as wide as the grid, one strip is the whole grid.
"""

# Triton's language has no types of Python's:
# mypy: disallow-untyped-defs=false, check-untyped-defs=false
import triton
import triton.language as tl

__all__ = ["fold_kernel", "output_kernel", "queries_kernel", "table_kernel", "values_kernel"]

FAR = tl.constexpr(1 << 20)
# One compilation serves every size: no address is better aligned for what these integers are.
SIZES = [
    "height", "width", "rows", "columns", "strip", "images", "per_split", "splits", "first_tile", "chunk", "capacity",
]  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    output, queries, values, table,
    height, width, rows, columns, strip,
    H: tl.constexpr, K: tl.constexpr, U: tl.constexpr, V: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    T: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output of a tile of T queries and VALUES value channels of one image."""
    n = height * width
    tiles = tl.cdiv(height * strip, T) * tl.cdiv(width, strip)
    program = tl.program_id(0)
    tile = program % tiles
    v = program // tiles % tl.cdiv(V, VALUES) * VALUES + tl.arange(0, VALUES)
    image = (program // tiles // tl.cdiv(V, VALUES)).to(tl.int64)
    lam = _lambdas(
        values + image * (U * n * V), table, tile, v, height, width, rows, columns, strip,
        K, U, V, KP, T, VALUES, STEP, ACC, PRECISION, WIDE,
    )  # fmt: skip
    h, t = _split(HP, T)
    y, x, query = _place(tile, t, T, strip, height, width)
    at = y * width + x
    blocks = _blocks(queries + image * (n * H * K), at, query, H, K, HP, KP, T)
    y = _dot(lam.to(output.dtype.element_ty), blocks, tl.zeros([VALUES, T * HP], ACC), PRECISION, WIDE)
    pointers = output + image * (n * H * V) + (at * H + h)[None, :] * V + v[:, None]
    tl.store(pointers, y.to(output.dtype.element_ty), mask=(query & (h < H))[None, :] & (v < V)[:, None])


@triton.jit(do_not_specialize=SIZES)
def queries_kernel(
    gradient, cotangent, values, table,
    height, width, rows, columns, strip,
    H: tl.constexpr, K: tl.constexpr, U: tl.constexpr, V: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    T: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of T queries of one image: the diagonal blocks of lam^T @ cotangent."""
    n = height * width
    tiles = tl.cdiv(height * strip, T) * tl.cdiv(width, strip)
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64)
    h, t = _split(HP, T)
    y, x, query = _place(tile, t, T, strip, height, width)
    at = y * width + x
    acc = tl.zeros([T * KP, T * HP], ACC)
    for start in range(0, V, VALUES):
        v = start + tl.arange(0, VALUES)
        lam = _lambdas(
            values + image * (U * n * V), table, tile, v, height, width, rows, columns, strip,
            K, U, V, KP, T, VALUES, STEP, ACC, PRECISION, WIDE,
        )  # fmt: skip
        dy = _cotangent(cotangent + image * (n * H * V), at, query, v, H, V, HP, T)
        acc = _dot(tl.trans(lam.to(dy.dtype)), dy, acc, PRECISION, WIDE)
    k, own = _split(KP, T)
    pointers = gradient + image * (n * H * K) + (at * H + h)[None, :] * K + k[:, None]
    mask = (own[:, None] == t[None, :]) & (query & (h < H))[None, :] & (k < K)[:, None]
    tl.store(pointers, acc.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def values_kernel(
    gradient, cotangent, queries, table,
    height, width, rows, columns, strip,
    H: tl.constexpr, K: tl.constexpr, U: tl.constexpr, V: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    T: tl.constexpr, VALUES: tl.constexpr, CONTEXT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of CONTEXT positions and VALUES channels: dlam @ E over the queries that see it."""
    n = height * width
    tiles = tl.cdiv(height * strip, CONTEXT) * tl.cdiv(width, strip)
    program = tl.program_id(0)
    tile = program % tiles
    v = program // tiles % tl.cdiv(V, VALUES) * VALUES + tl.arange(0, VALUES)
    program = program // tiles // tl.cdiv(V, VALUES)
    u = program % U
    image = (program // U).to(tl.int64)
    cy, cx, context = _place(tile, tl.arange(0, CONTEXT), CONTEXT, strip, height, width)
    top, left, across, size = _box(tile, CONTEXT, strip, height, width, rows, columns)
    k, own = _split(KP, T)
    _, t = _split(HP, T)
    acc = tl.zeros([VALUES, CONTEXT], ACC)
    for start in range(0, size, T):
        y, x, query = _in_box(start + t, top, left, across, size)
        at = y * width + x
        dy = _cotangent(cotangent + image * (n * H * V), at, query, v, H, V, HP, T)
        blocks = _blocks(queries + image * (n * H * K), at, query, H, K, HP, KP, T)
        dlam = _dot(dy, tl.trans(blocks), tl.zeros([VALUES, T * KP], ACC), PRECISION, WIDE)
        qy, qx, query = _in_box(start + own, top, left, across, size)
        e = _embeddings(table, u, cy, cx, context, qy, qx, query, k, rows, columns, K, U)
        acc = _dot(dlam.to(dy.dtype), tl.trans(e), acc, PRECISION, WIDE)
    pointers = gradient + (image * U + u) * (n * V) + (cy * width + cx)[None, :] * V + v[:, None]
    tl.store(pointers, acc.to(gradient.dtype.element_ty), mask=context[None, :] & (v < V)[:, None])


@triton.jit(do_not_specialize=SIZES)
def table_kernel(
    partial, cotangent, queries, values,
    height, width, rows, columns, strip, images, per_split, first_tile, chunk, capacity,
    H: tl.constexpr, K: tl.constexpr, U: tl.constexpr, V: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    T: tl.constexpr, VALUES: tl.constexpr, CONTEXT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of E for T queries and CONTEXT positions of their box: dlam^T @ values, over a share of the images.

    Written to ``partial`` [splits, chunk of tiles, U, capacity, (t,k)], which ``fold_kernel`` sums.
    """
    n = height * width
    steps = capacity // CONTEXT
    program = tl.program_id(0)
    j = program % steps * CONTEXT + tl.arange(0, CONTEXT)
    slot = program // steps % chunk
    program = program // steps // chunk
    u = program % U
    share = program // U
    tile = first_tile + slot
    top, left, across, size = _box(tile, T, strip, height, width, rows, columns)
    cy, cx, context = _in_box(j, top, left, across, size)
    from_position = (cy * width + cx)[:, None] * V
    _, t = _split(HP, T)
    y, x, query = _place(tile, t, T, strip, height, width)
    at = y * width + x
    first = share * per_split
    last = tl.minimum(first + per_split, images)
    queries += first.to(tl.int64) * (n * H * K)
    cotangent += first.to(tl.int64) * (n * H * V)
    values += (first.to(tl.int64) * U + u) * (n * V)
    acc = tl.zeros([T * KP, CONTEXT], ACC)
    for _ in range(first, last):
        blocks = _blocks(queries, at, query, H, K, HP, KP, T)
        for start in range(0, V, VALUES):
            v = start + tl.arange(0, VALUES)
            dy = _cotangent(cotangent, at, query, v, H, V, HP, T)
            dlam = _dot(blocks, tl.trans(dy), tl.zeros([T * KP, VALUES], ACC), PRECISION, WIDE)
            mask = context[:, None] & (v < V)[None, :]
            seen = tl.load(values + from_position + v[None, :], mask=mask, other=0.0)
            acc = _dot(dlam.to(dy.dtype), tl.trans(seen), acc, PRECISION, WIDE)
        queries += n * H * K
        cotangent += n * H * V
        values += U * n * V
    row = ((share * chunk + slot).to(tl.int64) * U + u) * capacity + j
    tl.store(partial + row[None, :] * (T * KP) + tl.arange(0, T * KP)[:, None], acc)


@triton.jit(do_not_specialize=SIZES)
def fold_kernel(
    gradient, partial,
    height, width, rows, columns, strip, splits, first_tile, chunk, capacity,
    K: tl.constexpr, U: tl.constexpr, KP: tl.constexpr, T: tl.constexpr,
    POSITIONS: tl.constexpr, OFFSETS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add to the table's gradient [rows, columns, U, K] what a chunk of tiles gives to each offset, in order."""
    u = tl.program_id(0) % U
    offset = tl.program_id(0) // U * OFFSETS + tl.arange(0, OFFSETS)
    dy = offset // columns - rows // 2
    dx = offset % columns - columns // 2
    k = tl.arange(0, KP)
    acc = tl.zeros([OFFSETS, KP], ACC)
    for start in range(0, chunk * T, POSITIONS):
        p = start + tl.arange(0, POSITIONS)
        slot = tl.minimum(p // T, chunk - 1)
        t = p % T
        y, x, query = _place(first_tile + slot, t, T, strip, height, width)
        top, left, across, _ = _box(first_tile + slot, T, strip, height, width, rows, columns)
        cy = y[:, None] + dy[None, :]
        cx = x[:, None] + dx[None, :]
        mask = (query & (p < chunk * T))[:, None] & (cy >= 0) & (cy < height) & (cx >= 0) & (cx < width)
        mask = mask & (offset < rows * columns)[None, :]
        j = (cy - top[:, None]) * across[:, None] + cx - left[:, None]
        row = (slot.to(tl.int64) * U + u)[:, None] * capacity + j
        pointers = partial + (row * T + t[:, None])[:, :, None] * KP + k[None, None, :]
        for _ in range(splits):
            acc += tl.sum(tl.load(pointers, mask=mask[:, :, None], other=0.0), axis=0)
            pointers += chunk.to(tl.int64) * (U * capacity * T * KP)
    pointers = gradient + (offset[:, None] * U + u) * K + k[None, :]
    mask = (offset < rows * columns)[:, None] & (k < K)[None, :]
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit
def _lambdas(
    values, table, tile, v, height, width, rows, columns, strip,
    K: tl.constexpr, U: tl.constexpr, V: tl.constexpr, KP: tl.constexpr,
    T: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Position lambdas [v, (t,k)] of the queries of a tile, over all that they see."""
    k, t = _split(KP, T)
    qy, qx, query = _place(tile, t, T, strip, height, width)
    top, left, across, size = _box(tile, T, strip, height, width, rows, columns)
    acc = tl.zeros([VALUES, T * KP], ACC)
    for u in range(U):
        for start in range(0, size, STEP):
            cy, cx, context = _in_box(start + tl.arange(0, STEP), top, left, across, size)
            mask = context[:, None] & (v < V)[None, :]
            at = (u * height + cy) * width + cx
            seen = tl.load(values + at[:, None] * V + v[None, :], mask=mask, other=0.0)
            e = _embeddings(table, u, cy, cx, context, qy, qx, query, k, rows, columns, K, U)
            acc = _dot(tl.trans(seen), e, acc, PRECISION, WIDE)
    return acc


@triton.jit
def _embeddings(table, u, cy, cx, context, qy, qx, query, k, rows, columns, K: tl.constexpr, U: tl.constexpr):
    """E[context, (t,k)] of contexts at (cy, cx) for queries at (qy, qx); zero beyond the table.

    Integer arithmetic is what the main loops have most of: what depends on one axis is done on that
    axis, and positions that are none are moved out of the table's reach, the two kinds apart.
    """
    cy = tl.where(context, cy, FAR)
    qy = tl.where(query, qy, -FAR)
    row = cy[:, None] - (qy - rows // 2)[None, :]
    column = cx[:, None] - (qx - columns // 2)[None, :]
    mask = (row.to(tl.uint32) < rows) & (column.to(tl.uint32) < columns) & (k < K)[None, :]
    from_context = (cy * columns + cx) * (U * K)
    from_query = ((qy - rows // 2) * columns + qx - columns // 2) * (U * K)
    entry = from_context[:, None] - from_query[None, :] + k[None, :]
    return tl.load(table + u * K + entry, mask=mask, other=0.0)


@triton.jit
def _blocks(
    queries, at, query,
    H: tl.constexpr, K: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Q[(t,k), (t,h)]; ``at`` are the positions, and ``query`` whether there is one, by (t,h)."""
    k, row = _split(KP, T)
    h, column = _split(HP, T)
    mask = (row[:, None] == column[None, :]) & (k < K)[:, None] & (query & (h < H))[None, :]
    return tl.load(queries + (at * H + h)[None, :] * K + k[:, None], mask=mask, other=0.0)


@triton.jit
def _cotangent(
    cotangent, at, query, v, H: tl.constexpr, V: tl.constexpr, HP: tl.constexpr, T: tl.constexpr
):  # fmt: skip
    """Cotangent [v, (t,h)]; ``at`` and ``query`` as in ``_blocks``."""
    h, _ = _split(HP, T)
    mask = (query & (h < H))[None, :] & (v < V)[:, None]
    return tl.load(cotangent + (at * H + h)[None, :] * V + v[:, None], mask=mask, other=0.0)


@triton.jit
def _split(DEPTH: tl.constexpr, T: tl.constexpr):
    """Of the merged axis (t, depth): the index into the depth, and t."""
    merged = tl.arange(0, T * DEPTH)
    return merged % DEPTH, merged // DEPTH


@triton.jit
def _place(tile, t, SIZE: tl.constexpr, strip, height, width):
    """Row and column of position ``t`` of a tile of SIZE, and whether it lies on the grid."""
    per_strip = tl.cdiv(height * strip, SIZE)
    p = tile % per_strip * SIZE + t
    y = p // strip
    x = tile // per_strip * strip + p % strip
    return y, x, (y < height) & (x < width)


@triton.jit
def _box(tile, SIZE: tl.constexpr, strip, height, width, rows, columns):
    """What a tile of SIZE sees, as a box on the grid: top row, left column, width, positions in it."""
    per_strip = tl.cdiv(height * strip, SIZE)
    first = tile % per_strip * SIZE
    left = tile // per_strip * strip
    top = tl.maximum(first // strip - rows // 2, 0)
    bottom = tl.minimum((first + SIZE - 1) // strip + rows // 2, height - 1)
    right = tl.minimum(left + strip - 1 + columns // 2, width - 1)
    left = tl.maximum(left - columns // 2, 0)
    across = right - left + 1
    return top, left, across, (bottom - top + 1) * across


@triton.jit
def _in_box(j, top, left, across, size):
    """Row and column of position ``j`` of a box, and whether it is in there.

    By a division: with the upper half of a 64-bit product by the inverse, which costs no less here, ptxas
    (as Triton 3.6 brings it, for an H100) computes other addresses than the program says, unless it is kept from
    optimising.
    """
    row = j // across
    return top + row, left + j - row * across, j < size


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """Matrix product and acc. WIDE is for the interpreter, which takes bfloat16 for integers (seen in triton 3.8)."""
    if WIDE:
        a = a.to(acc.dtype)
        b = b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
