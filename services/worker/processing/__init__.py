"""What lies before and after a model, run in the worker: text or pictures to tensors, scores to labels.

    processor.py   one version's declared steps (`shared.processing`), built once with all that they need from the store
    text.py        texts to token ids; the only import of tokenizers
    images.py      JPEG, PNG and WebP to numbers; the only import of Pillow
    scores.py      softmax, top-k, labels, pooling: numpy on whole batches
    step.py        where jobs meet `prepare`: in threads, bounded

A request that sends texts or pictures is turned into one that sends tensors before it is queued (`prepare`), so that
it is batched like any other; the steps behind the model run on a batch's outputs as a whole (`finish`).
"""
