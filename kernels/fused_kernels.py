# mypy: ignore-errors
# Triton's language is not Python: mypy cannot check it.
"""The Triton kernels of the fused backend; :mod:`rbctl.kernels.fused` launches them.

Online softmax and the recomputing backward pass are those of FlashAttention-2 (Dao 2023, arXiv 2307.08691); here two of
them share one query. Scores are in units of log 2, so that exp2 serves. Every sum is in float32. A row that may attend
to nothing has total 0 and, in ``lse``, +inf, which makes its probabilities 0 in the backward pass.

Arguments that all kernels share:
    q, out, grad_out: (B, H, Q, d); k, v of a branch: (B, H, K, d); each with its four strides.
    lse, delta: (2, B, H, Q) float32, text first: log2 sum exp2 of the scores; sum over keys of p * dp.
    attend: (B, 1, Q, M) uint8 where KIND is "regions".
    ranges, objects, width, tokens, DUMMIES: where KIND is "boxes": BoxCells' ranges (B, N, 4) int32, N, width,
        tokens_per_object, dummies.
    scale: 1 / sqrt(d). D: d; BLOCK_D: a power of two, at least d.
    DTYPE: what matrix products read.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# Triton compiles anew for numbers that are 1 or divisible by 16; of these it gains nothing by it.
COUNTS = ["objects", "width", "tokens", "heads", "query_count"]


@triton.jit
def _load(x, strides, batch, head, rows, count, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr):
    """(rows, BLOCK_D) of x, zero beyond the end."""
    columns = tl.arange(0, BLOCK_D)
    x += batch * strides[0] + head * strides[1]
    inside = (rows < count)[:, None] & (columns < D)[None, :]
    return tl.load(x + rows[:, None] * strides[2] + columns[None, :] * strides[3], mask=inside, other=0.0).to(DTYPE)


@triton.jit
def _store(x, strides, batch, head, rows, count, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    x += batch * strides[0] + head * strides[1]
    inside = (rows < count)[:, None] & (columns < D)[None, :]
    tl.store(x + rows[:, None] * strides[2] + columns[None, :] * strides[3], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _inside(cells, first, end):
    return (cells >= first) & (cells < end)


@triton.jit
def _allowed(
    queries,
    query_count,
    keys,
    key_count,
    batch,
    attend,
    attend_strides,
    ranges,
    objects,
    width,
    tokens,
    DUMMIES: tl.constexpr,
    KIND: tl.constexpr,
):
    """(queries, keys): which key each query may attend to."""
    allowed = (queries < query_count)[:, None] & (keys < key_count)[None, :]
    if KIND == "regions":
        attend += batch * attend_strides[0]
        at = queries[:, None] * attend_strides[2] + keys[None, :] * attend_strides[3]
        allowed = tl.load(attend + at, mask=allowed, other=0) != 0
    if KIND == "boxes":
        column, row = queries % width, queries // width
        ranges += batch * objects * 4
        owned = (keys >= DUMMIES) & (keys < key_count)
        box = ranges + (keys - DUMMIES) // tokens * 4
        seen = _inside(column[:, None], tl.load(box, mask=owned, other=0), tl.load(box + 2, mask=owned, other=0))
        seen &= _inside(row[:, None], tl.load(box + 1, mask=owned, other=0), tl.load(box + 3, mask=owned, other=0))
        if DUMMIES > 0:
            holders = tl.zeros_like(queries)  # how many boxes hold the query
            for index in range(objects):
                one = ranges + index * 4
                held = _inside(column, tl.load(one), tl.load(one + 2)) & _inside(
                    row, tl.load(one + 1), tl.load(one + 3)
                )
                holders += held.to(tl.int32)
            seen |= (holders == 0)[:, None] & (keys < DUMMIES)[None, :]
        allowed = allowed & seen
    return allowed


@triton.jit
def _any(allowed):
    return tl.max(tl.max(allowed.to(tl.int32), 1), 0) > 0


@triton.jit
def _take_in(q, k, v, allowed, scale, top, total, mixed, DTYPE: tl.constexpr):
    """One block of keys into the running softmax: its maximum, its sum and the values mixed by it."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    scores = tl.where(allowed, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key so far: -inf - -inf is no number
    p = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, 1)
    mixed = mixed * shrink[:, None] + tl.dot(p.to(DTYPE), v, input_precision="ieee")
    return new_top, total, mixed


@triton.jit
def _probabilities(q, k, lse, allowed, scale):
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    return tl.where(allowed, tl.exp2(scores - lse[:, None]), 0.0)


@triton.jit(do_not_specialize=[*COUNTS, "text_count", "image_count"])
def forward(
    q,
    k_text,
    v_text,
    k_image,
    v_image,
    out,
    lse,
    q_strides,
    k_text_strides,
    v_text_strides,
    k_image_strides,
    v_image_strides,
    out_strides,
    attend,
    attend_strides,
    ranges,
    objects,
    width,
    tokens,
    heads,
    query_count,
    text_count,
    image_count,
    scale,
    DUMMIES: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Grid: (blocks of queries, B * H). ``lse`` is None where no gradient is wanted."""
    program = tl.program_id(1).to(tl.int64)
    batch, head = program // heads, program % heads
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = _load(q, q_strides, batch, head, queries, query_count, D, BLOCK_D, DTYPE)

    text_top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    text_total = tl.zeros([BLOCK_Q], tl.float32)
    text = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, text_count, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load(k_text, k_text_strides, batch, head, keys, text_count, D, BLOCK_D, DTYPE)
        v = _load(v_text, v_text_strides, batch, head, keys, text_count, D, BLOCK_D, DTYPE)
        allowed = (keys < text_count)[None, :]
        text_top, text_total, text = _take_in(query, k, v, allowed, scale, text_top, text_total, text, DTYPE)

    image_top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    image_total = tl.zeros([BLOCK_Q], tl.float32)
    image = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, image_count, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        allowed = _allowed(
            queries, query_count, keys, image_count, batch, attend, attend_strides, ranges, objects, width, tokens,
            DUMMIES, KIND,
        )  # fmt: skip
        if _any(allowed):  # else no key is read
            k = _load(k_image, k_image_strides, batch, head, keys, image_count, D, BLOCK_D, DTYPE)
            v = _load(v_image, v_image_strides, batch, head, keys, image_count, D, BLOCK_D, DTYPE)
            image_top, image_total, image = _take_in(
                query, k, v, allowed, scale, image_top, image_total, image, DTYPE
            )  # fmt: skip

    both = text / tl.where(text_total > 0, text_total, 1.0)[:, None]
    both += image / tl.where(image_total > 0, image_total, 1.0)[:, None]
    _store(out, out_strides, batch, head, queries, query_count, both, D, BLOCK_D)
    if lse is not None:
        rows = program * query_count + queries
        image_rows = tl.num_programs(1).to(tl.int64) * query_count + rows
        inside = queries < query_count
        tl.store(lse + rows, tl.where(text_total > 0, text_top + tl.log2(text_total), float("inf")), mask=inside)
        tl.store(
            lse + image_rows, tl.where(image_total > 0, image_top + tl.log2(image_total), float("inf")), mask=inside
        )


@triton.jit
def _branch_backward_queries(
    query,
    grad,
    k,
    v,
    lse,
    k_strides,
    v_strides,
    batch,
    head,
    queries,
    query_count,
    key_count,
    scale,
    attend,
    attend_strides,
    ranges,
    objects,
    width,
    tokens,
    grad_query,
    DUMMIES: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
    WANT_Q: tl.constexpr,
):
    """delta of one branch, and ``grad_query`` with the branch's part added."""
    delta = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, key_count, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        allowed = _allowed(
            queries, query_count, keys, key_count, batch, attend, attend_strides, ranges, objects, width, tokens,
            DUMMIES, KIND,
        )  # fmt: skip
        if _any(allowed):
            key = _load(k, k_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
            value = _load(v, v_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
            p = _probabilities(query, key, lse, allowed, scale)
            delta += tl.sum(p * tl.dot(grad, tl.trans(value), input_precision="ieee"), 1)
    if WANT_Q:
        # A second pass, since p * (dp - delta) is small where p * dp and p * delta are not.
        for start in range(0, key_count, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            allowed = _allowed(
                queries, query_count, keys, key_count, batch, attend, attend_strides, ranges, objects, width, tokens,
                DUMMIES, KIND,
            )  # fmt: skip
            if _any(allowed):
                key = _load(k, k_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
                value = _load(v, v_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
                p = _probabilities(query, key, lse, allowed, scale)
                ds = p * (tl.dot(grad, tl.trans(value), input_precision="ieee") - delta[:, None])
                grad_query += tl.dot(ds.to(DTYPE), key, input_precision="ieee")
    return delta, grad_query


@triton.jit(do_not_specialize=[*COUNTS, "text_count", "image_count"])
def backward_queries(
    q,
    k_text,
    v_text,
    k_image,
    v_image,
    grad_out,
    lse,
    delta,
    grad_q,
    q_strides,
    k_text_strides,
    v_text_strides,
    k_image_strides,
    v_image_strides,
    grad_out_strides,
    grad_q_strides,
    attend,
    attend_strides,
    ranges,
    objects,
    width,
    tokens,
    heads,
    query_count,
    text_count,
    image_count,
    scale,
    DUMMIES: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
    WANT_Q: tl.constexpr,
):
    """Grid: (blocks of queries, B * H). Writes ``delta``, and ``grad_q`` if WANT_Q."""
    program = tl.program_id(1).to(tl.int64)
    batch, head = program // heads, program % heads
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = queries < query_count
    rows = program * query_count + queries
    image_rows = tl.num_programs(1).to(tl.int64) * query_count + rows
    query = _load(q, q_strides, batch, head, queries, query_count, D, BLOCK_D, DTYPE)
    grad = _load(grad_out, grad_out_strides, batch, head, queries, query_count, D, BLOCK_D, DTYPE)
    grad_query = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    branch_lse = tl.load(lse + rows, mask=inside, other=float("inf"))
    text_delta, grad_query = _branch_backward_queries(
        query, grad, k_text, v_text, branch_lse, k_text_strides, v_text_strides, batch, head, queries, query_count,
        text_count, scale, attend, attend_strides, ranges, objects, width, tokens, grad_query,
        DUMMIES, "text", D, BLOCK_D, BLOCK_Q, BLOCK_K, DTYPE, WANT_Q,
    )  # fmt: skip
    branch_lse = tl.load(lse + image_rows, mask=inside, other=float("inf"))
    image_delta, grad_query = _branch_backward_queries(
        query, grad, k_image, v_image, branch_lse, k_image_strides, v_image_strides, batch, head, queries, query_count,
        image_count, scale, attend, attend_strides, ranges, objects, width, tokens, grad_query,
        DUMMIES, KIND, D, BLOCK_D, BLOCK_Q, BLOCK_K, DTYPE, WANT_Q,
    )  # fmt: skip
    tl.store(delta + rows, text_delta, mask=inside)
    tl.store(delta + image_rows, image_delta, mask=inside)
    if WANT_Q:
        _store(grad_q, grad_q_strides, batch, head, queries, query_count, grad_query * scale, D, BLOCK_D)


@triton.jit(do_not_specialize=[*COUNTS, "key_count"])
def backward_keys(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    grad_k,
    grad_v,
    q_strides,
    k_strides,
    v_strides,
    grad_out_strides,
    grad_strides,
    attend,
    attend_strides,
    ranges,
    objects,
    width,
    tokens,
    heads,
    query_count,
    key_count,
    scale,
    DUMMIES: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    DTYPE: tl.constexpr,
    WANT_K: tl.constexpr,
    WANT_V: tl.constexpr,
):
    """One branch. Grid: (blocks of keys, chunks of CHUNK queries, B * H).

    ``lse`` and ``delta`` are the branch's own, (B, H, Q). ``grad_k``, ``grad_v`` (chunks, B, H, K, d) float32 are each
    chunk's part, with the last four of the five strides: the caller adds them up, in the same order every time.
    """
    program = tl.program_id(2).to(tl.int64)
    batch, head = program // heads, program % heads
    keys = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    key = _load(k, k_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
    value = _load(v, v_strides, batch, head, keys, key_count, D, BLOCK_D, DTYPE)
    sum_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    first = tl.program_id(1) * CHUNK
    for start in range(first, tl.minimum(first + CHUNK, query_count), BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        allowed = _allowed(
            queries, query_count, keys, key_count, batch, attend, attend_strides, ranges, objects, width, tokens,
            DUMMIES, KIND,
        )  # fmt: skip
        if _any(allowed):
            rows = program * query_count + queries
            inside = queries < query_count
            query = _load(q, q_strides, batch, head, queries, query_count, D, BLOCK_D, DTYPE)
            grad = _load(grad_out, grad_out_strides, batch, head, queries, query_count, D, BLOCK_D, DTYPE)
            p = _probabilities(
                query, key, tl.load(lse + rows, mask=inside, other=float("inf")), allowed, scale
            )  # fmt: skip
            if WANT_V:
                sum_v += tl.dot(tl.trans(p.to(DTYPE)), grad, input_precision="ieee")
            if WANT_K:
                mean = tl.load(delta + rows, mask=inside, other=0.0)
                ds = p * (tl.dot(grad, tl.trans(value), input_precision="ieee") - mean[:, None])
                sum_k += tl.dot(tl.trans(ds.to(DTYPE)), query, input_precision="ieee")
    part = tl.program_id(1).to(tl.int64) * grad_strides[0]
    strides = grad_strides[1:]
    if WANT_V:
        _store(grad_v + part, strides, batch, head, keys, key_count, sum_v, D, BLOCK_D)
    if WANT_K:
        _store(grad_k + part, strides, batch, head, keys, key_count, sum_k * scale, D, BLOCK_D)
