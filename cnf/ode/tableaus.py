"""The registry of explicit Runge-Kutta methods: a new method is a new entry of `TABLEAUS`."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from cnf.ode.tableau import Tableau

# By name, order and order of the error estimate, the tableau as papers print it: a row of `a` after
# each `c:`; the weights b, if not those of the last row; those of the embedded method (`b*`) or of
# the error (`e`); and mid.
_COEFFICIENTS: dict[tuple[str, int, int | None], str] = {
    # Heun's second-order method with Euler's embedded in it.
    ("adaptive_heun", 2, 1): """
        0:
        1: 1
        b: 1/2 1/2
        b*: 1 0
    """,
    # RKF1(2) of Fehlberg (1969), Low-order classical Runge-Kutta formulas with stepsize control,
    # NASA TR R-315, its second-order solution carried on. The error estimate is 1/512 of what the
    # slope changes over the step: far too hopeful at loose tolerances, where bosh3 is the better
    # choice.
    ("fehlberg2", 2, 1): """
        0:
        1/2: 1/2
        1: 1/256 255/256
        b: 1/512 255/256 1/512
        b*: 1/256 255/256 0
    """,
    # Bogacki & Shampine (1989), A 3(2) pair of Runge-Kutta formulas.
    ("bosh3", 3, 2): """
        0:
        1/2: 1/2
        3/4: 0 3/4
        1: 2/9 1/3 4/9
        b*: 7/24 1/4 1/3 1/8
    """,
    # The weights are those of Radau's quadrature of two points, which is of order 3; the stage in
    # between is unweighted, so that a log-density beside the state is evaluated twice a step. Of
    # such methods this one has the least terms of order 4 in its error (their norm is 6 % above
    # that of bosh3), and its error estimate has the leading terms of bosh3's.
    ("radau3", 3, 2): """
        0:
        1/2: 1/2
        2/3: 2/9 4/9
        1: 1/4 0 3/4
        b*: 5/16 0 9/16 1/8
    """,
    # Dormand & Prince (1980), table 2; mid is the continuous extension of Shampine (1986), Some
    # practical Runge-Kutta formulas, at half a step.
    ("dopri5", 5, 4): """
        0:
        1/5: 1/5
        3/10: 3/40 9/40
        4/5: 44/45 -56/15 32/9
        8/9: 19372/6561 -25360/2187 64448/6561 -212/729
        1: 9017/3168 -355/33 46732/5247 49/176 -5103/18656
        1: 35/384 0 500/1113 125/192 -2187/6784 11/84
        b*: 5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40
        mid: 6025192743/60171106304 0 51252292925/130801643196 -2691868925/90256659456
            187940372067/3189068634112 -1776094331/39487288512 11237099/470086768
    """,
    # Tsitouras (2011), Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    # assumption; mid is the paper's continuous extension at half a step.
    ("tsit5", 5, 4): """
        0:
        0.161: 0.161
        0.327: -0.008480655492356989 0.335480655492357
        0.9: 2.8971530571054935 -6.359448489975075 4.3622954328695815
        0.9800255409045097: 5.325864828439257 -11.748883564062828 7.4955393428898365
            -0.09249506636175525
        1: 5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401
            -0.028269050394068383
        1: 0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081
            2.324710524099774
        e: -0.001780011052225777 -0.0008164344596567469 0.007880878010261995 -0.1447110071732629
            0.5823571654525552 -0.45808210592918697 1/66
        mid: 0.10741235230096871 0.01135625 0.39560903056045305 -0.34475214352593553
            1.3161853649581645 -1.0170608542936508 0.03125
    """,
    # RK8(7)13M of Prince & Dormand (1981), High order embedded Runge-Kutta formulae, and the next
    # step's first stage. mid is not theirs: of all weights of order 5 at half a step, these have
    # the least sum of squares.
    ("dopri8", 8, 7): """
        0:
        1/18: 1/18
        1/12: 1/48 1/16
        1/8: 1/32 0 3/32
        5/16: 5/16 0 -75/64 75/64
        3/8: 3/80 0 0 3/16 3/20
        59/400: 29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
        93/200: 16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229
            -180193667/1043307555
        5490023248/9719169821: 39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301
            100302831/723423059 790204164/839813087 800635310/3783071287
        13/20: 246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803
            -12992083/490766935 6005943493/2108947869 393006217/1396673457 123872331/1001029789
        1201146811/1299019798: -1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823
            -10304129995/1701304382 -48777925059/3047939560 15336726248/1032824649
            -45442868181/3398467696 3065993473/597172653
        1: 185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211
            5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418
            65686358/487910083
        1: 403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604
            11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525
            248638103/1413531060 0
        1: 14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732
            -1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170
            1/4
        b*: 13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321
            656045339/265891186 -3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0
            0
        mid: 0.04073672270602739 0 0 0 0 0.14569877189269972 0.2349888710237251 0.07725446379852334
            0.015755162207448905 -0.015169356578661397 -5.2378775334618644e-05 0.0002625812418576301
            0.0002625812418576301 0.0002625812418576301
    """,
    # Euler (1768). The five without an error estimate are in Hairer, Nørsett & Wanner (1993),
    # section II.1.
    ("euler", 1, None): """
        0:
        b: 1
    """,
    # Runge (1895).
    ("midpoint", 2, None): """
        0:
        1/2: 1/2
        b: 0 1
    """,
    # Heun (1900): the trapezoidal rule with an Euler predictor.
    ("heun2", 2, None): """
        0:
        1: 1
        b: 1/2 1/2
    """,
    # Heun (1900).
    ("heun3", 3, None): """
        0:
        1/3: 1/3
        2/3: 0 2/3
        b: 1/4 0 3/4
    """,
    # Kutta (1901): the 3/8 rule.
    ("rk4", 4, None): """
        0:
        1/3: 1/3
        2/3: -1/3 1
        1: 1 -1 1
        b: 1/8 3/8 3/8 1/8
    """,
}


def _method(name: str, order: int, error_order: int | None, coefficients: str) -> Tableau:
    """Return the method with the given coefficients."""
    rows: list[tuple[str, list[float]]] = []
    for word in coefficients.split():
        if word.endswith(":"):
            rows.append((word[:-1], []))
        else:
            rows[-1][1].append(_number(word))
    weights = {label: tuple(row) for label, row in rows if label in ("b", "b*", "e", "mid")}
    stages = [(_number(label), tuple(row)) for label, row in rows if label not in weights]
    c, a = zip(*stages, strict=True)
    b, e = weights.get("b") or (*a[-1], 0.0), weights.get("e")
    if "b*" in weights:
        e = tuple(own - embedded for own, embedded in zip(b, weights["b*"], strict=True))
    return Tableau(name, order, error_order, c, a, b, e, weights.get("mid"))


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


TABLEAUS: dict[str, Tableau] = {
    key[0]: _method(*key, coefficients) for key, coefficients in _COEFFICIENTS.items()
}


def find_tableau(name: str) -> Tableau:
    """Return the method of the given name.

    Raises:
        ValueError: No method has the name; the message lists the closest.

    Example:
        >>> find_tableau("rk4").stages
        4
    """
    return TABLEAUS[known_name("method", name, TABLEAUS)]


def known_name(what: str, name: str, names: Collection[str]) -> str:
    """Return a name that is among `names`; raise a `ValueError` with the closest of them if not."""
    if name not in names:
        close = get_close_matches(str(name), names) or list(names)
        raise ValueError(f"Expected {what} to be one of {', '.join(close)}; got {name!r}")
    return name
