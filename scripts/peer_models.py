"""Which models the benchmark of quality trains, and where their settings come from.

Settings are those that the authors of each library published for the log that comes nearest: a five-core
shop (short histories, many items) or films (long ones, few). The budget of time takes the place of their
number of epochs.
"""

LIGR = "rectools.models.nn.transformers.ligr.LiGRLayers"
# eSASRec's authors publish one table for RecTools: https://github.com/blondered/transformer_benchmark
SHOP = {"n_factors": 64, "n_blocks": 1, "n_heads": 1, "dropout_rate": 0.2, "session_max_len": 50}
FILM = {"n_factors": 64, "n_blocks": 2, "n_heads": 1, "dropout_rate": 0.1, "session_max_len": 200}
SAMPLED = {"loss": "sampled_softmax", "n_negatives": 256, "lr": 0.001, "batch_size": 128}
BLOCKS = {"transformer_layers_type": LIGR, "use_key_padding_mask": True}
BLOCKS |= {"transformer_layers_kwargs": {"ff_factors_multiplier": 4}}


def peer_models(long_histories: bool) -> dict[str, dict]:
    """Name to peer (the environment and runner), settings and their source.

    Args:
        long_histories: whether the log is like films rather than like a shop.
    """
    sizes = FILM if long_histories else SHOP
    length, dropout = sizes["session_max_len"], 0.2 if long_histories else 0.5
    table = "table of hyperparameters of blondered/transformer_benchmark"
    paper = "dropout as in the paper of SASRec (0.2 for films, 0.5 elsewhere)"
    rectools = {"class": "SASRecModel", **sizes, **SAMPLED}
    recbole = {"class": "SASRec", "MAX_ITEM_LIST_LENGTH": length, "train_batch_size": 2048}
    recbole |= {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout}
    replay = {"block_count": 2, "head_count": 2, "hidden_size": 64, "max_seq_len": length}
    replay |= {"dropout_rate": dropout, "batch_size": 128, "learning_rate": 0.001}
    models = {
        "RecTools SASRec": ("rectools", rectools, table),
        "RecTools eSASRec": ("rectools", rectools | BLOCKS, table),
        "RecTools BERT4Rec": (
            "rectools",
            rectools | {"class": "BERT4RecModel", "mask_prob": 0.15},
            f"{table}; the share of masks is RecTools' own",
        ),
        "RecBole SASRec": ("recbole", recbole, f"RecBole's defaults (cross-entropy); {paper}"),
        "RePlay SASRec": ("replay", replay, f"RePlay's default loss (cross-entropy); {paper}"),
    }
    if not long_histories:  # their scripts for shops have this width, their table has 64
        wide = rectools | BLOCKS | {"n_factors": 256}
        scripts = "configs/paper/loo of blondered/transformer_benchmark"
        models["RecTools eSASRec, width 256"] = ("rectools", wide, scripts)
    return {name: dict(zip(("peer", "settings", "source"), one)) for name, one in models.items()}
