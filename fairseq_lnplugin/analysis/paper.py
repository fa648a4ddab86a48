"""The paper's settings and numbers that the measurements stand beside (Xiong et al. 2020, sections 3.3 and 3.4, figure 3).

What the study of whole trainings takes from the paper is in study/tables.py.
"""

from fairseq_lnplugin.study.tables import PAPER_REGULARIZATION

#: The models of figure 3 and their training (appendix A.1); the paper's matrix products were float32.
SETTINGS = {
    "arch": "transformer_ln_study_iwslt_de_en",
    "dropout": PAPER_REGULARIZATION["dropout"],
    "label_smoothing": PAPER_REGULARIZATION["label_smoothing"],
    "compute_dtype": "float32",
}
#: How the paper's fairseq started W1 and W2: see weight_init.py.
INIT = "xavier_uniform"
#: Figure 3 (c, d): the numbers of layers, and how many seeds each norm is a mean over.
DEPTHS, SEEDS = {6, 8, 10, 12, 14}, 10
#: Figure 3 (d): Post-LN's norm at every depth, read off the plot.
POST_LN = 1.6
#: Theorem 1: the exponent of Pre-LN's norm in the number of layers, beside figure 3 (c).
PRE_EXPONENT = -0.5
#: Section 3.3, definition 1: the (epsilon, delta) with which the paper found the hidden states bounded.
EPSILON, DELTA = 0.1, 0.125
#: The same in words.
BOUNDED = f"({EPSILON:g}, {DELTA:g})-bounded"
