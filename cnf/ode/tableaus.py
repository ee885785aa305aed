"""The registry of explicit Runge-Kutta methods: a new method is a new entry of `TABLEAUS`."""

from __future__ import annotations

from difflib import get_close_matches

from cnf.ode.tableau import Tableau

# Euler (1768). This and the next four are in Hairer, Nørsett & Wanner (1993), section II.1.
_EULER = Tableau(name="euler", order=1, error_order=None, c=(0,), a=((),), b=(1,))

# Runge (1895).
_MIDPOINT = Tableau(
    name="midpoint", order=2, error_order=None, c=(0, 1 / 2), a=((), (1 / 2,)), b=(0, 1)
)

# Heun (1900): the trapezoidal rule with an Euler predictor.
_HEUN2 = Tableau(name="heun2", order=2, error_order=None, c=(0, 1), a=((), (1,)), b=(1 / 2, 1 / 2))

# Heun (1900).
_HEUN3 = Tableau(
    name="heun3",
    order=3,
    error_order=None,
    c=(0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0, 2 / 3)),
    b=(1 / 4, 0, 3 / 4),
)

# Kutta (1901): the 3/8 rule.
_RK4 = Tableau(
    name="rk4",
    order=4,
    error_order=None,
    c=(0, 1 / 3, 2 / 3, 1),
    a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)

# Heun's second-order method with Euler's embedded in it.
_ADAPTIVE_HEUN = Tableau(
    name="adaptive_heun",
    order=2,
    error_order=1,
    c=(0, 1),
    a=((), (1,)),
    b=(1 / 2, 1 / 2),
    e=(-1 / 2, 1 / 2),
)

# RKF1(2) of Fehlberg (1969), Low-order classical Runge-Kutta formulas with stepsize control, NASA
# TR R-315, its second-order solution carried on. The error estimate is 1/512 of what the slope
# changes over the step: far too hopeful at loose tolerances, where bosh3 is the better choice.
_FEHLBERG2 = Tableau(
    name="fehlberg2",
    order=2,
    error_order=1,
    c=(0, 1 / 2, 1),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    e=(-1 / 512, 0, 1 / 512),
)

# Bogacki & Shampine (1989), A 3(2) pair of Runge-Kutta formulas.
_BOSH3 = Tableau(
    name="bosh3",
    order=3,
    error_order=2,
    c=(0, 1 / 2, 3 / 4, 1),
    a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0),
    e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# Dormand & Prince (1980), table 2; e is b minus the embedded fourth-order weights; mid is the
# continuous extension of Shampine (1986), Some practical Runge-Kutta formulas, at half a step.
_DOPRI5 = Tableau(
    name="dopri5",
    order=5,
    error_order=4,
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    e=(
        35 / 384 - 5179 / 57600,
        0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
    mid=(
        6025192743 / 60171106304,
        0,
        51252292925 / 130801643196,
        -2691868925 / 90256659456,
        187940372067 / 3189068634112,
        -1776094331 / 39487288512,
        11237099 / 470086768,
    ),
)

# Tsitouras (2011), Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
# assumption; mid is the paper's continuous extension at half a step.
_TSIT5 = Tableau(
    name="tsit5",
    order=5,
    error_order=4,
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0,
    ),
    e=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    mid=(
        0.10741235230096871,
        0.01135625,
        0.39560903056045305,
        -0.34475214352593553,
        1.3161853649581645,
        -1.0170608542936508,
        0.03125,
    ),
)

# RK8(7)13M of Prince & Dormand (1981), High order embedded Runge-Kutta formulae, and the next
# step's first stage; e is b minus the embedded seventh-order weights. mid is not theirs: of all
# weights of order 5 at half a step, these have the least sum of squares.
_DOPRI8 = Tableau(
    name="dopri8",
    order=8,
    error_order=7,
    c=(
        0,
        1 / 18,
        1 / 12,
        1 / 8,
        5 / 16,
        3 / 8,
        59 / 400,
        93 / 200,
        5490023248 / 9719169821,
        13 / 20,
        1201146811 / 1299019798,
        1,
        1,
        1,
    ),
    a=(
        (),
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0, 3 / 32),
        (5 / 16, 0, -75 / 64, 75 / 64),
        (3 / 80, 0, 0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906,
            0,
            0,
            77736538 / 692538347,
            -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911,
            0,
            0,
            61564180 / 158732637,
            22789713 / 633445777,
            545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083,
            0,
            0,
            -433636366 / 683701615,
            -421739975 / 2616292301,
            100302831 / 723423059,
            790204164 / 839813087,
            800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787,
            0,
            0,
            -37695042795 / 15268766246,
            -309121744 / 1061227803,
            -12992083 / 490766935,
            6005943493 / 2108947869,
            393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014,
            0,
            0,
            8478235783 / 508512852,
            1311729495 / 1432422823,
            -10304129995 / 1701304382,
            -48777925059 / 3047939560,
            15336726248 / 1032824649,
            -45442868181 / 3398467696,
            3065993473 / 597172653,
        ),
        (
            185892177 / 718116043,
            0,
            0,
            -3185094517 / 667107341,
            -477755414 / 1098053517,
            -703635378 / 230739211,
            5731566787 / 1027545527,
            5232866602 / 850066563,
            -4093664535 / 808688257,
            3962137247 / 1805957418,
            65686358 / 487910083,
        ),
        (
            403863854 / 491063109,
            0,
            0,
            -5068492393 / 434740067,
            -411421997 / 543043805,
            652783627 / 914296604,
            11173962825 / 925320556,
            -13158990841 / 6184727034,
            3936647629 / 1978049680,
            -160528059 / 685178525,
            248638103 / 1413531060,
            0,
        ),
        (
            14005451 / 335480064,
            0,
            0,
            0,
            0,
            -59238493 / 1068277825,
            181606767 / 758867731,
            561292985 / 797845732,
            -1041891430 / 1371343529,
            760417239 / 1151165299,
            118820643 / 751138087,
            -528747749 / 2220607170,
            1 / 4,
        ),
    ),
    b=(
        14005451 / 335480064,
        0,
        0,
        0,
        0,
        -59238493 / 1068277825,
        181606767 / 758867731,
        561292985 / 797845732,
        -1041891430 / 1371343529,
        760417239 / 1151165299,
        118820643 / 751138087,
        -528747749 / 2220607170,
        1 / 4,
        0,
    ),
    e=(
        14005451 / 335480064 - 13451932 / 455176623,
        0,
        0,
        0,
        0,
        -59238493 / 1068277825 + 808719846 / 976000145,
        181606767 / 758867731 - 1757004468 / 5645159321,
        561292985 / 797845732 - 656045339 / 265891186,
        -1041891430 / 1371343529 + 3867574721 / 1518517206,
        760417239 / 1151165299 - 465885868 / 322736535,
        118820643 / 751138087 - 53011238 / 667516719,
        -528747749 / 2220607170 - 2 / 45,
        1 / 4,
        0,
    ),
    mid=(
        0.04073672270602739,
        0,
        0,
        0,
        0,
        0.14569877189269972,
        0.2349888710237251,
        0.07725446379852334,
        0.015755162207448905,
        -0.015169356578661397,
        -5.2378775334618644e-05,
        0.0002625812418576301,
        0.0002625812418576301,
        0.0002625812418576301,
    ),
)

TABLEAUS: dict[str, Tableau] = {
    tableau.name: tableau
    for tableau in (
        _ADAPTIVE_HEUN,
        _FEHLBERG2,
        _BOSH3,
        _DOPRI5,
        _TSIT5,
        _DOPRI8,
        _EULER,
        _MIDPOINT,
        _HEUN2,
        _HEUN3,
        _RK4,
    )
}


def find_tableau(name: str) -> Tableau:
    """Return the method of the given name.

    Raises:
        ValueError: No method has the name; the message lists the closest.

    Example:
        >>> find_tableau("rk4").stages
        4
    """
    if name not in TABLEAUS:
        close = get_close_matches(str(name), TABLEAUS) or list(TABLEAUS)
        raise ValueError(f"Expected method to be one of {', '.join(close)}; got {name!r}")
    return TABLEAUS[name]
