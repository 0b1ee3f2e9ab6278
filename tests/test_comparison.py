"How sure one can be of a difference: against other implementations, and known truth"
import json
import re
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import (
    average_precision_score, balanced_accuracy_score, f1_score, precision_recall_curve)
from statsmodels.stats import multitest

from cell_diffusion.plots import confusion_shares
from cell_diffusion.simulation import jurkat_phases
from cell_diffusion.studies import comparison
from cell_diffusion.studies.comparison import (
    Endpoint, Plan, Scores, bootstrap, class_weights, contrast_table, draw_interval,
    false_decisions, holm, pack_scores, plot_precision, plot_price, report,
    simulate_scores, unpack_scores)
from common import root

rare = Endpoint('average precision', (2, 3))
accuracy = Endpoint('balanced accuracy')
four = dict(real=0, copies=.3, gan=1., ddpm=1.2)


def one_arm(seed=0):
    "Log-probabilities, labels and uneven weights of one training's test cells"
    scores = simulate_scores(dict(one=.5), replicates=1, seed=seed)
    labels = np.concatenate(scores.labels)
    log_p = np.concatenate([fold[0] for fold in scores.log_p['one']])
    weights = np.random.default_rng(seed).poisson(1, len(labels))*1.3
    return log_p, labels, weights


def plan(**changes):
    contrasts = ('ddpm', 'copies'), ('ddpm', 'gan'), ('ddpm', 'real')
    given = dict(endpoint=rare, contrasts=contrasts, equivalent=('ddpm', 'gan'))
    return Plan(**{**given, **changes})


# Scores

def test_scores_as_text_and_back():
    log_p = one_arm()[0]
    found = unpack_scores(pack_scores(log_p), 4)
    assert found.dtype == np.float32
    assert abs(found - log_p.clip(-12.75)).max() < .0251
    assert unpack_scores(pack_scores(np.zeros((0, 4))), 4).shape == (0, 4)


@pytest.mark.parametrize('bad', [[0., 0.], [[1., 0.]], [[np.nan, 0.]]])
def test_what_is_no_log_probability_is_refused(bad):
    with pytest.raises(ValueError, match='take log_softmax'):
        pack_scores(bad)


@pytest.mark.parametrize('text', ['', 'abc', 'ä', pack_scores(np.zeros((5, 3)))])
def test_damaged_scores_are_refused(text):
    with pytest.raises(ValueError, match='delete their record'):
        unpack_scores(text, 4)


def test_sure_scores_keep_their_order_as_text():
    "Near 1 the probabilities themselves would be equal after rounding"
    sure = np.array([[np.log1p(-3*np.exp(x)), x, x, x] for x in (-9., -8., -7., -6.)])
    kept = unpack_scores(pack_scores(sure), 4)
    assert len(set(kept[:, 0])) == 1
    assert (np.diff(comparison.log_odds(kept, [0])) < 0).all()


# Endpoints, against scikit-learn

@pytest.mark.parametrize('seed', range(3))
def test_endpoints_are_those_of_scikit_learn(seed):
    log_p, labels, w = one_arm(seed)
    expected = np.mean([average_precision_score(labels == k, log_p[:, k],
                                                sample_weight=w) for k in (2, 3)])
    assert np.isclose(rare(log_p, labels, w), expected, atol=1e-6)

    predicted = log_p.argmax(1)
    expected = f1_score(labels, predicted, average='macro', sample_weight=w)
    assert np.isclose(Endpoint('macro F1')(log_p, labels, w), expected)
    expected = balanced_accuracy_score(labels, predicted, sample_weight=w)
    assert np.isclose(accuracy(log_p, labels, w), expected)

    prior = np.bincount(labels)/len(labels)
    predicted = (log_p - np.log(prior)).argmax(1)
    expected = f1_score(labels, predicted, average='macro', sample_weight=w)
    adjusted = Endpoint('macro F1', adjusted=True)
    assert np.isclose(adjusted(log_p, labels, w), expected)
    assert adjusted(log_p, labels, w) != Endpoint('macro F1')(log_p, labels, w)


@pytest.mark.parametrize('recall', [.2, .5, .8, 1.])
def test_precision_at_a_recall_is_a_point_of_the_curve(recall):
    log_p, labels, w = one_arm()
    positive = np.isin(labels, (2, 3))
    score = np.exp(log_p)[:, 2:].sum(1)
    curve = precision_recall_curve(positive, score, sample_weight=w)
    # From the loosest threshold to the strictest: the last that finds enough
    expected = curve[0][np.flatnonzero(curve[1] >= recall - 1e-9)[-1]]
    found = Endpoint('precision at recall', (2, 3), recall)(log_p, labels, w)
    assert np.isclose(found, expected)


def test_ties_count_as_one_threshold():
    log_p = np.log(np.array([[.5, .5], [.5, .5], [.5, .5], [.9, .1]]))
    labels = np.array([1, 0, 1, 0])
    w = np.array([1., 2., 3., 4.])
    expected = average_precision_score(labels, log_p[:, 1], sample_weight=w)
    assert np.isclose(Endpoint('average precision', (1,))(log_p, labels, w), expected)


@pytest.mark.parametrize('endpoint', [
    rare, accuracy, Endpoint('macro F1'), Endpoint('precision at recall', (2, 3))])
def test_many_weights_at_once_are_each_by_itself(endpoint):
    log_p, labels, w = one_arm()
    many = np.stack([w, np.ones(len(w)), w[::-1]], 1)
    each = [endpoint(log_p, labels, v) for v in many.T]
    assert np.allclose(endpoint(log_p, labels, many), each)


@pytest.mark.parametrize('endpoint', [
    rare, Endpoint('macro F1'), Endpoint('precision at recall', (2, 3))])
def test_other_shares_are_other_cells(endpoint):
    "A weight of 3 for a class is every cell of it three times"
    log_p, labels, _ = one_arm()
    weight = np.where(labels == 0, 3, 1)
    rows = np.repeat(np.arange(len(labels)), weight)
    prior = np.full(4, .25)
    expected = endpoint(log_p[rows], labels[rows], np.ones(len(rows)), prior)
    assert np.isclose(endpoint(log_p, labels, weight*1., prior), expected)

    counts = dict(zip('abcd', np.bincount(labels[rows])))
    scores = Scores(tuple('abcd'), [labels], dict(one=[log_p[None]]),
                    dict(one=prior))
    assert np.isclose(bootstrap(scores, endpoint, shares=counts).value('one'), expected)


def test_weights_give_the_shares():
    labels = np.array([0]*6 + [1]*4)
    weight = class_weights(labels, ('a', 'b'), dict(a=90, b=10))
    total = np.bincount(labels, weight[labels])
    assert np.allclose(total/total.sum(), (.9, .1))
    assert (class_weights(labels, ('a', 'b')) == 1).all()
    with pytest.raises(ValueError, match='say nothing of b'):
        class_weights(labels, ('a', 'b'), dict(a=1))


@pytest.mark.parametrize('kwargs', [
    dict(kind='auc'), dict(kind='average precision'),
    dict(kind='precision at recall', classes=(1,), recall=2)])
def test_endpoints_that_are_none(kwargs):
    with pytest.raises(ValueError):
        Endpoint(**kwargs)


# The bootstrap

def from_predictions(right, trainings=2):
    "Scores of arms that are right for some of the cells of one class, wrong for others"
    log_p = {}
    for arm, r in right.items():
        p = np.where(np.asarray(r)[:, None], [.9, .1], [.1, .9])
        log_p[arm] = [np.repeat(np.log(p)[None], trainings, 0)]
    n = len(next(iter(right.values())))
    return Scores(('a', 'b'), [np.zeros(n, int)], log_p)


only_a = Endpoint('precision at recall', (0,), 1.)


def test_interval_is_that_of_scipy_where_only_cells_vary():
    "Balanced accuracy of one class is a mean of cells"
    right = np.random.default_rng(0).random(80) < .7
    scores = from_predictions(dict(one=right))
    draws = bootstrap(scores, accuracy, draws=20_000)
    _, d = draws.difference('one')
    # The other class has no cells and a recall of 0: twice the value is the share
    found = 2*np.quantile(d, (.025, .975))
    theirs = stats.bootstrap((right.astype(float),), np.mean, n_resamples=20_000,
                             method='percentile', random_state=0).confidence_interval
    assert np.allclose(found, theirs, atol=.015)
    assert np.isclose(2*d.std(), right.std(ddof=1)/80**.5, rtol=.03)


def test_few_cells_and_few_trainings_vary_as_much_as_they_do():
    "n draws of n would vary by (n - 1)/n too little"
    right = np.arange(6) > 1
    draws = bootstrap(from_predictions(dict(one=right)), accuracy, 20_000)
    _, d = draws.difference('one')
    assert np.isclose(2*d.std(), right.std(ddof=1)/6**.5, rtol=.03)

    x = np.array([.31, .42, .35])
    arm = comparison.Arm([[np.array([v]) for v in x]])
    uniform = np.random.default_rng(0).random((20_000, 2, 1))

    def measure(cells, weights): return cells.mean()
    d = comparison.over_trainings(arm, measure, None, uniform)
    stretch = stats.t.ppf(.975, 4)/stats.norm.ppf(.975)
    assert np.isclose(d.std(), stretch*x.std(ddof=1)/3**.5, rtol=.03)


def test_luck_of_a_training_with_its_cells_is_counted_once():
    "Trainings that are right for other cells each: the cells' own part is nothing"
    rng = np.random.default_rng(0)
    log_p = [np.stack([np.log(np.where(rng.random((400, 1)) < .7, [.9, .1], [.1, .9]))
                       for _ in range(4)])]
    scores = Scores(('a', 'b'), [np.zeros(400, int)], dict(one=log_p))
    draws = bootstrap(scores, accuracy, 4000)
    _, d = draws.difference('one')
    cells = d - draws.trainings['one']
    assert cells.std() < .5*draws.cells['one'].mean(0).std()


def test_differences_are_paired():
    "Two arms that are wrong for nearly the same cells"
    one = np.arange(200) >= 60
    other = one.copy()
    other[:3] = True
    draws = bootstrap(from_predictions(dict(one=one, other=other)), accuracy, 2000)
    _, d = draws.difference('other', 'one')
    _, alone = draws.difference('one')
    assert d.std() < alone.std()/3
    same = bootstrap(from_predictions(dict(one=one, other=one)), accuracy, 500)
    assert (same.difference('one', 'other')[1] == 0).all()


def test_spread_is_that_of_studies_made_anew():
    "Cells and trainings vary: what the bootstrap says is what new studies show"
    values, spreads = [], []
    for seed in range(60):
        scores = simulate_scores(dict(a=0, b=0), training=.6, folds=2, seed=seed)
        value, d = bootstrap(scores, rare, 200, seed).difference('b', 'a')
        values.append(value)
        spreads.append(d.var())
    ratio = (np.mean(spreads)/np.mean(np.square(values)))**.5
    assert .8 < ratio < 1.35, ratio


def test_more_trainings_of_the_same_kind_make_no_other_cells():
    "Three equal trainings are as unsure as two"
    right = np.random.default_rng(0).random(80) < .7
    spread = [bootstrap(from_predictions(dict(one=right), n), accuracy, 3000)
              .difference('one')[1].std() for n in (2, 6)]
    assert np.isclose(*spread, rtol=.05)


def test_the_same_seed_gives_the_same_draws():
    scores = simulate_scores(four)
    one, again, other = (bootstrap(scores, rare, 100, seed).difference('ddpm', 'gan')[1]
                         for seed in (0, 0, 1))
    assert (one == again).all() and (one != other).any()
    fewer = bootstrap(scores, rare, 100, 0, arms=('ddpm', 'gan'))
    assert np.allclose(fewer.difference('ddpm', 'gan')[1], one)


def test_unknown_arms_are_named():
    with pytest.raises(ValueError, match="no arm 'dpm'"):
        bootstrap(simulate_scores(four), rare, 100).difference('dpm', 'real')
    with pytest.raises(ValueError, match='the plan names vae'):
        contrast_table(simulate_scores(four), plan(contrasts=[('vae', 'gan')]),
                       draws=100)


@pytest.mark.parametrize('endpoint, change, message', [
    (Endpoint('average precision', (7,)), None, 'no test cell is of class 7'),
    (rare, lambda s: s.log_p['gan'].pop(), 'gan: scores should be'),
    (rare, lambda s: s.labels.__setitem__(0, s.labels[0][1:]), 'scores should be'),
    (rare, lambda s: s.log_p['gan'].__setitem__(0, s.log_p['gan'][0][:0]), 'gan'),
    (rare, lambda s: [np.put(y, np.flatnonzero(y == 3), 2) for y in s.labels],
     'no test cell is of class 3')])
def test_scores_that_do_not_fit(endpoint, change, message):
    scores = simulate_scores(four)
    if change: change(scores)
    with pytest.raises(ValueError, match=message):
        bootstrap(scores, endpoint, 100)


# p values

def closed(p):
    "Holm by closed testing: the largest Bonferroni p of all sets that have the test"
    sets = [s for m in range(1, len(p) + 1) for s in combinations(range(len(p)), m)]
    return [max(min(1, len(s)*min(p[j] for j in s)) for s in sets if i in s)
            for i in range(len(p))]


@pytest.mark.parametrize('seed', range(5))
def test_holm_is_closed_testing(seed):
    p = np.random.default_rng(seed).random(5)**3
    assert np.allclose(holm(p), closed(p))


def test_holm_is_that_of_its_paper_and_of_statsmodels():
    p = np.array([.01, .04, .03, .005])
    assert np.allclose(holm(p), (.03, .06, .06, .02))
    p = np.random.default_rng(0).random(20)**2
    assert np.allclose(holm(p), multitest.multipletests(p, method='holm')[1])


def test_a_contrast_without_p_counts_as_a_test():
    found = holm(np.array([.01, np.nan, .02]))
    assert np.allclose(found, [.03, np.nan, .04], equal_nan=True)


def test_monte_carlo_errors_are_those_of_other_seeds():
    ends = []
    for seed in range(40):
        d = np.random.default_rng(seed).normal(1.5, 1, 2000)
        ends.append([*comparison.quantile_with_error(d, .025),
                     *comparison.two_sided(d)])
    low, low_error, p, p_error = np.array(ends).T
    assert np.isclose(low.std(), low_error.mean(), rtol=.35)
    assert np.isclose(p.std(), p_error.mean(), rtol=.35)
    assert np.isclose(p.mean(), 2*stats.norm.sf(1.5), rtol=.05)


@pytest.mark.parametrize('p, surely, says', [
    (.01, .02, 'higher'), (.045, .055, 'too close to call'),
    (.06, .07, 'not significant'), (np.nan, np.nan, 'one training')])
def test_nothing_is_significant_within_two_errors(p, surely, says):
    assert comparison.verdict(1., p, surely, .05) == says


# The plan and its report

def test_a_plan_is_written_and_read(tmp_path):
    for written in plan(), plan(equivalent=(), shares=dict(a=1, b=2, c=3, d=4)):
        written.write(tmp_path/'plan.json')
        assert Plan.read(tmp_path/'plan.json') == written
    (tmp_path/'plan.json').write_text(json.dumps(dict(level=.05)))
    with pytest.raises(ValueError, match='holds no plan'):
        Plan.read(tmp_path/'plan.json')


@pytest.mark.parametrize('changes', [
    dict(contrasts=[('a', 'a')]), dict(contrasts=[('a',)]), dict(margin=0),
    dict(contrasts=[('a', 'b')]*2), dict(level=1), dict(equivalent=('a', 'a'))])
def test_plans_that_are_none(changes):
    with pytest.raises(ValueError):
        plan(**changes)


def test_contrasts_find_what_was_put_in():
    scores = simulate_scores(dict(four, ddpm=2.), training=.2)
    table = contrast_table(scores, plan(), draws=1000).set_index(['arm', 'against'])
    assert list(table.kind) == ['planned']*3 + ['exploratory']*2
    assert table.says['ddpm', 'real'] == 'higher'
    assert table.p_holm.notna().sum() == 3
    assert np.allclose(table.p_holm[:3], holm(table.p[:3]))
    others = contrast_table(scores, plan(), accuracy, draws=200)
    assert (others.kind == 'exploratory').all() and others.p_holm.isna().all()
    shares = dict(a=9, b=3, c=2, d=1)
    others = contrast_table(scores, plan(), shares=shares, draws=200)
    assert (others.kind == 'exploratory').all()
    planned = contrast_table(scores, plan(shares=shares), draws=200)
    assert (planned.kind[:3] == 'planned').all()


def test_a_report_has_its_parts_in_order():
    text = report(simulate_scores(four), plan(), dict(a=9, b=3, c=2, d=1), [accuracy],
                  draws=200)
    parts = ['Planned contrasts', 'On a par?', 'could have seen', 'Exploratory']
    assert sorted(parts, key=text.index) == parts
    lines = text.partition('Exploratory')[2].splitlines()
    sentences = [line for line in lines if 'against' in line]
    assert len(sentences) == 2 + 3*5
    assert all('exploratory: ' in line for line in sentences)
    assert 'exploratory' not in text.partition('On a par?')[0]


def test_one_training_gives_no_verdict():
    scores = simulate_scores(four, replicates=1)
    table = contrast_table(scores, plan(), draws=100)
    assert (table.says == 'one training').all()
    assert table[['low', 'high', 'p', 'p_holm', 'detectable']].isna().all().all()
    text = report(scores, plan(), draws=100)
    assert 'One training: nothing can be said about ddpm against real.' in text
    for word in 'better', 'worse', 'significant', 'equivalent', 'four times in five':
        assert word not in text, word


def test_one_fold_with_one_training_is_one_training():
    scores = simulate_scores(four)
    scores.log_p['ddpm'][0] = scores.log_p['ddpm'][0][:1]
    table = contrast_table(scores, plan(), draws=100)
    assert (table.says[:3] == 'one training').all()
    assert (table.says[3:] != 'one training').all()


def test_equivalence_is_two_one_sided_tests():
    scores = simulate_scores(dict(gan=1., ddpm=1.), sizes=(2000, 800, 300, 300))
    far = bootstrap(simulate_scores(dict(real=0, ddpm=2.)), rare, 300)
    for pair in ('real', 'ddpm'), ('ddpm', 'real'):
        found = comparison.equivalence(far, plan(equivalent=pair, margin=.05))
        assert found['says'] == 'not shown to be equivalent'
    wide = plan(contrasts=[('ddpm', 'gan')], margin=.3)
    draws = bootstrap(scores, rare, 1000)
    found = comparison.equivalence(draws, wide)
    assert found['says'] == 'equivalent'
    _, d = draws.difference('ddpm', 'gan')
    # The test rejects where the 90% interval lies within the margin
    for margin in np.linspace(.005, .1, 20):
        row = comparison.equivalence(draws, plan(margin=margin))
        inside = -margin < row['low'] and row['high'] < margin
        assert inside or row['says'] != 'equivalent'
        assert (row['p'] < .05) == inside or abs(row['p'] - .05) < .003


def test_detectable_differences_are_seen_four_times_in_five():
    seen = np.random.default_rng(0).normal(comparison.detectable(2., .05), 2., 20_000)
    assert np.isclose((seen > 1.96*2).mean(), .8, atol=.01)
    strict = comparison.detectable(2., .01)
    assert strict > comparison.detectable(2., .05)


# False decisions

@pytest.mark.slow
@pytest.mark.parametrize('trainings', [3, 6])
def test_trainings_of_one_arm_seldom_differ(trainings):
    found = []
    for seed in range(6):
        scores = simulate_scores(four, folds=2, training=.6, replicates=trainings,
                                 seed=seed)
        found.append(false_decisions(scores, rare, repeats=5, draws=200, seed=seed))
    assert sum(f['tests'] for f in found) == 120
    assert np.mean([f['share'] for f in found]) <= .07
    assert all(f['low'] <= f['share'] <= f['high'] for f in found)


def test_false_decisions_need_two_trainings():
    found = false_decisions(simulate_scores(four, replicates=1), rare)
    assert found['tests'] == 0 and np.isnan(found['share'])


# Draws as units

def test_draws_are_the_unit():
    d = np.array([.1, .2, .15, .05, .12])
    found = draw_interval(d)
    t = stats.ttest_1samp(d, 0)
    assert np.isclose(found['p'], t.pvalue)
    half = stats.t.ppf(.975, 4)*d.std(ddof=1)/5**.5
    assert np.isclose(found['low'], d.mean() - half)
    assert np.isclose(found['high'], d.mean() + half)
    # All of one sign: the two most extreme of 32
    assert found['p_signs'] == 2/32
    mixed = np.array([.1, -.2, .15, .05, -.12])
    signs = np.array(np.meshgrid(*[[-1, 1]]*5)).reshape(5, -1)
    exact = (abs((signs.T*mixed).mean(1)) >= abs(mixed.mean()) - 1e-12).mean()
    assert np.isclose(draw_interval(mixed)['p_signs'], exact)


def test_one_draw_gives_no_verdict():
    found = draw_interval([.3])
    assert found['value'] == .3 and found['draws'] == 1
    assert np.isnan([found[k] for k in ('low', 'high', 'p', 'p_signs')]).all()
    for bad in [], [np.nan], [[1.]]:
        with pytest.raises(ValueError, match='one finite number'):
            draw_interval(bad)


# Figures

def test_figures():
    scores = simulate_scores(four)
    arms = {'original': 'real', '+ GAN': 'gan', '+ DDPM': 'ddpm'}
    shares = dict(a=1000, b=100, c=10, d=5)
    fig = plot_precision(scores, arms, {2: .8, 3: .5}, shares, draws=100)
    assert len(fig.axes) == 2 and len(fig.axes[0].containers) == 3
    draws = bootstrap(scores, rare, 100)
    fig = plot_price(draws, {0: 'real', 10: 'copies'}, ['gan', 'ddpm'])
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == [
        'real cells added', 'gan', 'ddpm']


def test_the_plan_in_words_is_the_plan_that_is_read():
    plan = Plan.read(root/'plan.json')
    words = (root/'PLAN.md').read_text(encoding='utf-8')
    told = re.findall(r'^\d\. `(.+?)` − `(.+?)`$', words, re.M)
    assert list(plan.contrasts) == told and len(told) == 5
    assert 'Equivalence of `{}` and `{}`'.format(*plan.equivalent) in words
    assert f'margin of {plan.margin:g}'.replace('0.', '.') in words
    phases = [jurkat_phases[k] for k in plan.endpoint.classes]
    assert phases == ['Prophase', 'Metaphase', 'Anaphase', 'Telophase']


def test_confusion_by_hand():
    "Two trainings and two folds: rows are true classes, and sum to 1"
    def sure(called): return np.log(np.eye(3)[called] + 1e-6)
    labels = [np.array([0, 0, 1]), np.array([1, 2, 2])]
    first = sure([[0, 1, 1], [0, 0, 2]])
    second = sure([[1, 2, 2], [0, 2, 0]])
    scores = Scores(tuple('abc'), labels, dict(a=[first, second]))
    shares = confusion_shares(scores, 'a')
    assert np.allclose(shares, [[3/4, 1/4, 0], [1/4, 2/4, 1/4], [1/4, 0, 3/4]])
