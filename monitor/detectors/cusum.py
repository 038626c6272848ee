"""Self-calibrating two-sided CUSUM over segments of constant level: the default detector.

A stream of log slowdowns is modelled as segments, each of constant level m and variance v. Within a segment a bank of
CUSUM recursions (``bank.py``) compares every sample with m, and raises an alarm when the segment ends. Details:

- m is estimated as the mean of the segment's n samples before the present one. So a residual has variance v (1 + 1/n),
  times a factor for autocorrelated noise. Such recursive residuals of one segment are independent.
- A sample is the logarithm of time / baseline, so the level of an undisturbed stream is known before its first sample,
  up to the error of its baseline. The undisturbed level b of stream i has the prior N(0, tau^2), which is worth n0 = v
  / tau^2 samples of 0, and is bounded by ::

      bound_i = min(max(0, least b of all streams), ln common) + ln own

  ``common`` is the largest slowdown of all stages together that counts as undisturbed (clocks, shared caches, a slower
  host); no plan can compensate it. ``own`` is the same for one stage beyond the others. m is kept below the bound, so
  that any lasting level above it leads to an alarm, from the first sample on and however slowly it was reached.
- When a disturbance begins, b is estimated from the n samples before it and the prior. At its end, and for the first
  alarm, b may be higher than that estimate by (bound - b) n0 / (n0 + n).
- Stages may be faster while the pipeline fills: among the first samples a level below the baseline is ignored.
- The evidence of one sample is at most -ln(p), p being the calibrated probability of an outlier (``noise.py``): one
  sample is enough in a stream without outliers so far, two or three in a row are needed in one with outliers.
- After an alarm the next segment begins at the maximum-likelihood change point: where sqrt(n) |mean - m| of the n
  samples since then is largest. (The last zero of Page's sum is that for a shift of exactly d.)
- The undisturbed level and its noise adapt slowly while undisturbed, and are frozen while disturbed. A disturbed
  segment has a noise estimate of its own: under bursty loads times vary by tens of percent without any change.

While all streams are undisturbed and all estimates have converged, precisions and weights hardly change: they are then
reused for a block of samples (``_steady``), so that a request without changes costs little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.detectors.bank import CusumBank
from odin.monitor.detectors.cusum_rows import MEMORY as _MEMORY
from odin.monitor.detectors.cusum_rows import OWN_WEIGHT as _OWN_WEIGHT
from odin.monitor.detectors.cusum_rows import OWN_WINSOR as _OWN_WINSOR
from odin.monitor.detectors.cusum_rows import Look, PlainState, take_rows
from odin.monitor.detectors.history import History, samples_since_change
from odin.monitor.detectors.noise import NoiseCalibration
from odin.monitor.detectors.streams import Streams

__all__ = ["CusumDetector"]

FloatArray = NDArray[np.float64]

_HISTORY = 128
_BLOCK = 32
"""Updates between two calibrations of the noise, and between two checks for a disturbance that has decayed."""
_SHORT = 16
"""A disturbance of at most so many samples was an outlier: its samples are used for the noise estimate."""
_LEARN = 8
"""Samples by which the level is estimated after a rebase, and the noise at first."""
_ERROR = 0.12
"""tau: standard deviation of log(undisturbed time / baseline)."""
_FILLS, _FILLS_PER_STREAM = 32, 4
"""Samples after which the pipeline counts as filled."""
_AFTER_END = 64
"""Weight, in samples, of the undisturbed level when a disturbance ends: it may have drifted meanwhile."""
_OWN_DEVIATION = 0.3
"""Prior standard deviation of a disturbed segment's noise."""
_OWN_PERSISTENCE = 0.5
"""Largest autocorrelation assumed in a disturbed segment: that of undisturbed noise says little about loads."""
_DROP = 2.5
_DROP_SAMPLES = 4
"""Further evidence, and samples, that a level below the undisturbed one takes: nothing is urgent about it."""
_PROVISIONAL = 32
"""Samples for which a new, lower undisturbed level must persist before it replaces the old one for good."""
_LIMIT = 20.0
"""Logarithms beyond this are cut off, infinity among them."""


class CusumDetector(Streams):
    """Self-calibrating two-sided CUSUMs for several streams at once; the module's docstring has the method.

    A level below the undisturbed one becomes the new undisturbed level (the baseline may have been measured under
    interference): provisionally at first, for good once it has persisted.

    Parameters
    ----------
    streams
        How many streams, at least 1.
    arl
        Average run length: mean number of samples between false alarms of a stream, at least, over both directions and
        all shifts.
    shifts
        Slowdown ratios that the bank is tuned to, above 1 and ascending; larger ones are detected by the last.
    minimum
        A change of level by a smaller ratio counts as drift: it raises no alarm, and the level follows slowly.
    surprise
        A jump by a larger ratio raises an alarm even directly after :meth:`rebase`.
    common, own
        Largest ratios of time to baseline that count as undisturbed: of all streams together, and of one stream beyond
        the others.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    Page (1954), Continuous inspection schemes. Huber (1965), A robust version of the probability ratio test. Lorden
    (1971), Procedures for reacting to a change in distribution. Moustakides (1986), Optimal stopping times for
    detecting changes in distributions.

    Examples
    --------
    >>> import numpy as np
    >>> random, detector = np.random.default_rng(0), CusumDetector(2)
    >>> for request in range(600):
    ...     detector.update(random.normal(0.0, 0.1, 2) + np.log([1.0, 2.0 if request >= 500 else 1.0]))
    ...     if detector.changed.any():
    ...         print(request, detector.disturbed, detector.age)
    500 [False  True] [501   1]
    >>> np.exp(detector.level).round(1)
    array([1., 2.])
    """

    def __init__(
        self,
        streams: int,
        *,
        arl: float = 10_000,
        shifts: Sequence[float] = (1.1, 1.25, 1.5, 2.0, 3.0),
        minimum: float = 1.08,
        surprise: float = 1.5,
        common: float = 1.35,
        own: float = 1.3,
    ) -> None:
        super().__init__(streams)
        if not 100 <= arl < math.inf:
            raise ValueError(f"arl={arl}: mean samples between false alarms, from 100; 10,000 is usual")
        if not shifts or not all(1.0 < low < high for low, high in zip(shifts, (*shifts[1:], math.inf), strict=True)):
            raise ValueError(f"shifts={tuple(shifts)}: ratios above 1, ascending, such as (1.1, 1.5, 2)")
        if not 1.0 < minimum <= surprise < math.inf:
            raise ValueError(f"minimum={minimum}, surprise={surprise}: ratios above 1, the first no larger")
        if not (1.0 <= common < math.inf and 1.0 <= own < math.inf):
            raise ValueError(f"common={common}, own={own}: ratios from 1, such as 1.35 and 1.3")
        self._minimum, self._surprise = math.log(minimum), math.log(surprise)
        self._common, self._own = math.log(common), math.log(own)
        self._bank = CusumBank(streams, shifts=[math.log(shift) for shift in shifts], arl=arl)
        self._noise = NoiseCalibration(streams, outlier_memory=arl)
        self._samples = History(_HISTORY, streams)  # of the present segment
        self._residuals = History(_BLOCK, streams)  # undisturbed ones, for calibration

        # The present segment, and what is undisturbed.
        self._mean = np.zeros(streams)
        self._variance = self._noise.variance.copy()
        self._prior_count = float(self._variance[0]) / _ERROR**2
        self._count = np.full(streams, self._prior_count)
        self._base = np.zeros(streams)
        self._base_count = self._count.copy()  # samples that the undisturbed level is known from
        self._from_mean, self._from_count = self._mean.copy(), self._count.copy()  # before the segment's own samples
        self._allowed = np.full(streams, self._own)  # bound of the undisturbed level ...
        self._bound = self._allowed.copy()  # ... and of the present one: infinite while disturbed
        self._filling = _FILLS + _FILLS_PER_STREAM * streams  # updates for which the pipeline may still fill
        self._disturbed = np.zeros(streams, dtype=np.bool_)
        self._any_disturbed = False
        self._own_prior = np.full(streams, _OWN_DEVIATION**2)
        self._former_base = np.zeros(streams)  # undisturbed level before the last drop ...
        self._provisional = np.zeros(streams)  # ... which counts until the present one has lasted so long
        self._to_learn = np.zeros(streams, dtype=np.int64)
        self._learning = False
        self._to_calibrate = np.full(streams, _LEARN)  # undisturbed samples until noise is first learned
        self._beginning = True  # while the pipeline fills, or the noise of some stream is not known

        # Memory to compute in.
        self._ones = np.ones(streams)
        self._valid = np.ones(streams, dtype=np.bool_)
        self._winsor, self._r, self._a = np.zeros((3, streams))
        self._least = np.zeros(streams)
        self._steady = self._any_changed = False
        self._ahead = 0  # steady samples that are not in counts and ages yet
        self._refresh()

    @property
    def disturbed(self) -> NDArray[np.bool_]:
        """Whether the stream is above its undisturbed level now, (streams,)."""
        return self._disturbed.copy()

    @property
    def level(self) -> FloatArray:
        """Logarithm of the slowdown, (streams,); 0.0 while undisturbed.

        Of mean times, which is what throughput is made of: if logarithms vary by variance v, the mean time is
        exp(mean + v / 2), as of a log-normal distribution. So half the variance that the disturbance adds counts.
        """
        usual = self._noise.variance
        # Less the part of the segment's variance that was only expected, not seen.
        added = self._variance - usual - (self._own_prior - usual) * _OWN_WEIGHT / (self._count + _OWN_WEIGHT - 1)
        return np.where(self._disturbed, self._mean - self._base + added / 2, 0.0)

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of undisturbed samples, outliers apart, (streams,)."""
        return np.sqrt(self._noise.variance)

    @property
    def age(self) -> NDArray[np.int64]:
        """Samples since the last detected change is estimated to have begun, the last one included, (streams,)."""
        return self._age + self._ahead

    def update(self, x: ArrayLike) -> None:
        """Take one sample of every stream, shape (streams,); ``nan`` where there is none.

        Raises
        ------
        ValueError
            If there is not one sample per stream.
        """
        x = self._checked(x)
        sample, residual = self._samples.advance(), self._residuals.advance()
        sample[...] = x
        np.subtract(sample, self._mean, out=residual)
        if self._any_changed:
            self._changed[...] = self._any_changed = False
        if self._steady and residual.dot(residual) < math.inf:  # all are finite
            alarm = self._take_steadily(residual)
        else:
            self._catch_up()
            alarm = self._take(sample, residual)
        self._finish(alarm)

    @property
    def is_plain(self) -> bool:
        """Whether :meth:`update_rows` may take the next samples: no level and no noise is being learned."""
        return not (self._learning or self._beginning)

    def update_rows(
        self,
        x: FloatArray,
        first: int,
        last: int,
        look: Look,
        ages: NDArray[np.int64],
        take: Callable[..., tuple[int, bool, bool, int]] = take_rows,
    ) -> tuple[int, bool, int]:
        """Take samples ``x[first:last]``, (samples, streams), until one after which anything but ages has changed.

        Only while :attr:`is_plain`. The parameters are those of :func:`~odin.monitor.detectors.cusum_rows.take_rows`,
        which may be a compiled one.

        Returns
        -------
        tuple
            How many were taken; whether the last of them is still to be looked at by the watch; its ``since_change``.
        """
        if self._any_changed:
            self._changed[...] = self._any_changed = False
        if not self._steady:
            self._catch_up()
        state = PlainState(
            samples=self._samples.rows,
            residuals=self._residuals.rows,
            newest_sample=self._samples.newest,
            newest_residual=self._residuals.newest,
            mean=self._mean,
            variance=self._variance,
            samples_known=self._count,
            bound=self._bound,
            winsor=self._winsor,
            least=self._least,
            disturbed=self._disturbed,
            age=self._age,
            base=self._base,
            usual_variance=self._noise.variance,
            own_prior=self._own_prior,
            bank=self._bank.state,
            steady=self._steady,
            ahead=self._ahead,
            any_disturbed=self._any_disturbed,
        )
        taken, alarm, stopped, since_change = take(x, first, last, state, look, ages)
        self._samples.newest = (self._samples.newest + taken) % len(self._samples.rows)
        self._residuals.newest = (self._residuals.newest + taken) % len(self._residuals.rows)
        if self._steady:
            self._ahead += taken
        else:
            self._valid[...] = True
        if stopped:
            self._finish(alarm)
        return taken, stopped, since_change

    def _finish(self, alarm: bool) -> None:
        """What a sample may lead to beyond itself."""
        if alarm:
            self._catch_up()
            for stream in self._bank.alarms():
                self._examine(int(stream))
        if self._learning:
            self._learn_levels()
            self._learning = bool(self._to_learn.any())
        if self._beginning:
            self._begin_with_noise()
        if self._residuals.newest == _BLOCK - 1:
            self._catch_up()
            self._calibrate()

    def _take_steadily(self, residual: FloatArray) -> bool:
        """Take one sample of each stream, all of them finite; whether there is an alarm."""
        alarm = self._bank.add_settled(residual)
        r = np.minimum(residual, self._winsor, out=self._r)
        np.maximum(r, self._least, out=r)
        r *= 1.0 / _MEMORY
        self._mean += r
        np.minimum(self._mean, self._bound, out=self._mean)
        self._ahead += 1
        return alarm

    def _catch_up(self) -> None:
        """Count the samples that were taken steadily."""
        if self._ahead:
            self._count += self._ahead
            self._age += self._ahead
            self._ahead = 0
            self._valid[...] = True

    def _take(self, sample: FloatArray, residual: FloatArray) -> bool:
        """Take one sample of each stream; whether there is an alarm."""
        r, a, weight = self._r, self._a, self._ones
        r[...] = residual
        if not np.logical_and.reduce(np.isfinite(r, out=self._valid)) or self._learning:
            weight = self._take_exceptions(sample, residual)
        if self._any_disturbed:
            residual[self._disturbed] = np.nan
            self._learn_own_noise(weight)
        self._age += self._valid

        # 1 / (v (1 + 1/n))
        np.divide(self._variance, self._count, out=a)
        a += self._variance
        np.divide(weight, a, out=a)
        evidence = self._of_filling(r) if self._filling else r
        alarm = self._bank.add(evidence, a)

        # m moves toward the sample by 1 / n of what is between them.
        np.minimum(r, self._winsor, out=r)
        np.maximum(r, self._least, out=r)
        self._count += weight
        np.minimum(self._count, _MEMORY, out=a)
        np.divide(weight, a, out=a)
        a *= r
        self._mean += a
        np.minimum(self._mean, self._bound, out=self._mean)
        return alarm

    def _of_filling(self, r: FloatArray) -> FloatArray:
        """The evidence in residuals of a pipeline that fills: nothing above a level below the baseline, but below 0."""
        below = (self._mean < 0) & ~self._disturbed
        # Such a level is not learned either: it is worth no more than the prior, until the next samples tell another.
        np.minimum(self._count, self._prior_count, out=self._count, where=below)
        return np.where(below & (r > 0), np.maximum(r + self._mean, 0.0), r)

    def _limit(self) -> None:
        """Bring the bounds up to date."""
        undisturbed = np.where(self._disturbed, self._base, self._mean)
        least = float(np.minimum.reduce(undisturbed, initial=self._common, where=self._age > 0))
        self._allowed.fill(self._own + max(least, 0.0))
        np.copyto(self._bound, np.where(self._disturbed, np.inf, self._allowed))

    def _begin_with_noise(self) -> None:
        """Take the first samples' noise for that of a stream until there are more, and bounds as they become known."""
        first = self._valid & ~self._disturbed & (self._to_calibrate > 0)
        self._to_calibrate -= first
        for stream in np.flatnonzero(first & (self._to_calibrate == 0)):
            self._noise.start(int(stream), self._samples.of(int(stream))[-_LEARN:])
            self._refresh()
        if self._filling:
            self._filling -= 1
            self._limit()
            np.minimum(self._mean, self._bound, out=self._mean)
        self._beginning = self._filling > 0 or self._is_noise_unknown()

    def _is_noise_unknown(self) -> bool:
        """Whether there is a stream that was seen, and whose noise was not."""
        return bool(((self._to_calibrate > 0) & (self._age > 0)).any())

    def rebase(self) -> None:
        """Expect a jump that is no interference: the stages hold other layers from the next sample on.

        The median of the next eight samples is the present level; a disturbed stream stays disturbed above the same
        undisturbed level, an undisturbed one has its undisturbed level there. Only a jump by more than ``surprise``,
        seen in the median of at least three samples, is an alarm.
        """
        self._samples.clear()
        self._residuals.clear()
        self._bank.evidence[...] = 0.0
        self._provisional[...] = 0.0
        self._to_learn[...] = _LEARN
        self._learning = True
        self._steady = False

    # ------------------------------------------------------------ every update, or every block of them
    def _take_exceptions(self, sample: FloatArray, residual: FloatArray) -> FloatArray:
        """Set apart what is no sample, is infinite or comes while a level is learned; returns who counts, as 1.0."""
        np.greater(sample, -np.inf, out=self._valid)  # nan is not; a time of 0 s was not measured
        sample[~self._valid] = np.nan
        np.clip(sample, -_LIMIT, _LIMIT, out=sample)
        np.subtract(sample, self._mean, out=residual)
        self._r[...] = np.where(self._valid, residual, 0.0)  # with weight 0: leaves everything as it is
        learning = self._to_learn > 0
        residual[learning] = np.nan
        return (self._valid & ~learning).astype(np.float64)

    def _learn_own_noise(self, weight: FloatArray) -> None:
        """A disturbed segment's variance, from residuals against the mean before each: n / (n + 1) r^2.

        Winsorised: the first samples of other conditions must not pass for noise before they make an alarm.
        """
        square = np.square(self._r)
        square *= self._count / (self._count + 1.0)
        np.minimum(square, _OWN_WINSOR**2 * self._variance, out=square)
        square -= self._variance
        square *= weight
        square *= self._disturbed
        square /= self._count + _OWN_WEIGHT
        self._variance += square

    def _calibrate(self) -> None:
        self._noise.learn(self._residuals.rows)
        self._beginning = self._beginning or self._is_noise_unknown()
        if self._any_disturbed:
            # No sum sees a level that sinks with its own estimate, after a hiccup that was taken for an onset.
            for stream in np.flatnonzero(self._disturbed & (self._count >= _LEARN)).tolist():
                base, known = float(self._base[stream]), float(self._base_count[stream])
                if self._mean[stream] - base >= max(self._minimum / 2, self._unknown(base, known, stream)):
                    continue
                self._end(stream)
                self._changed[stream] = self._any_changed = True
        self._refresh()

    def _refresh(self) -> None:
        """What follows from the segments' states and from calibration."""
        self._any_disturbed = bool(self._disturbed.any())
        self._limit()
        np.copyto(self._variance, self._noise.variance, where=~self._disturbed)
        usual = np.maximum(3 * np.sqrt(self._variance), self._minimum)
        np.copyto(self._winsor, np.where(self._disturbed, np.inf, usual))
        np.negative(self._winsor, out=self._least)
        persistence = np.minimum(self._noise.persistence, np.where(self._disturbed, _OWN_PERSISTENCE, 1.0))
        self._bank.calibrate(self._variance, persistence, self._noise.evidence_limit)
        self._steady = not (self._any_disturbed or self._learning) and bool(self._count.min() >= _MEMORY)
        if self._steady:
            self._bank.settle(1.0 / (self._variance * (1.0 + 1.0 / self._count)))

    # ------------------------------------------------------------ seldom, for one stream
    def _examine(self, stream: int) -> None:
        """The evidence for a change is there: since when, and is it one?"""
        evidence = self._bank.evidence[:, :, stream]
        upward = evidence[0].max() >= evidence[1].max()
        samples = self._samples.of(stream)
        if not len(samples):  # not measured for long: the next one will tell
            return
        count = samples_since_change((samples - self._mean[stream]) * (1 if upward else -1))
        below = not upward and not self._disturbed[stream]
        if below and (count < _DROP_SAMPLES or evidence.max() < self._bank.threshold + _DROP):
            return
        recent = samples[-count:]
        before, known = float(self._base[stream]), float(self._base_count[stream])
        if not self._disturbed[stream]:
            before, known = self._before(stream, samples[:-count], recent)
            step = float(recent.mean()) - before
            if -self._minimum < step < max(self._minimum, self._unknown(before, known, stream) if upward else 0.0):
                evidence /= 2  # drift, or a change that will look larger with more samples
                return
        self._change(stream, recent, before, known)

    def _change(self, stream: int, recent: FloatArray, before: float, known: float) -> None:
        """Begin a new segment with the samples that it has so far.

        ``before`` is the undisturbed level before it, as known from so many samples.
        """
        count, mean, level = len(recent), float(recent.mean()), float(self._mean[stream])
        disturbed, changed = bool(self._disturbed[stream]), True
        self._bank.evidence[:, :, stream] = 0.0
        if not disturbed and mean <= before:
            self._lower(stream, recent)
        else:
            provisional = not disturbed and self._count[stream] < self._provisional[stream]
            if not disturbed:
                self._base[stream] = self._former_base[stream] if provisional else before
                self._base_count[stream] = known
            uncertainty = 3 * math.sqrt(self._noise.variance[stream] / count)
            unknown = self._unknown(float(self._base[stream]), known, stream)
            near = mean - self._base[stream] < max(self._minimum, uncertainty, unknown)
            if near and (disturbed or provisional):
                self._end(stream, recent)
                self._samples.keep(stream, count)
            else:
                changed = not disturbed or abs(mean - level) >= self._minimum
                self._disturb(stream, recent)
        self._residuals.drop(stream, count)
        if changed:
            self._changed[stream] = self._any_changed = True
            self._age[stream] = count
        self._refresh()

    def _unknown(self, base: float, known: float, stream: int) -> float:
        """How much higher than that the undisturbed level may be, if it is known from so many samples."""
        return max(float(self._allowed[stream]) - base, 0.0) * min(self._prior_count / known, 1.0)

    def _lower(self, stream: int, recent: FloatArray) -> None:
        """An undisturbed level below the one before."""
        self._former_base[stream] = self._mean[stream]
        self._provisional[stream] = min(self._count[stream], _PROVISIONAL)
        self._begin(stream, recent)
        self._from_mean[stream], self._from_count[stream] = self._mean[stream], 1.0
        self._noise.doubt(stream)

    def _before(self, stream: int, earlier: FloatArray, recent: FloatArray) -> tuple[float, float]:
        """The undisturbed level before the latest samples, and from how many it is known.

        The level that is followed has moved toward them meanwhile.
        """
        weight, count = float(self._from_count[stream]), float(self._count[stream])
        winsor = max(3 * math.sqrt(self._noise.variance[stream]), self._minimum)
        if count - weight < _HISTORY - 1:  # all samples of the segment are here
            middle = float(np.median(earlier)) if len(earlier) else 0.0
            total = weight * self._from_mean[stream] + np.clip(earlier, middle - winsor, middle + winsor).sum()
            known = weight + len(earlier)
            before = float(total) / known
        else:
            share = 1 - (1 - 1 / min(count, _MEMORY)) ** min(len(recent), _MEMORY // 2)
            mean, known = float(self._mean[stream]), float(_MEMORY)
            before = mean - share * float(np.clip(recent - mean, -winsor, winsor).mean()) / (1 - share)
            if mean >= self._bound[stream]:  # held there, not moved
                before = mean
        if self._filling:
            before = max(before, 0.0)
        return min(before, float(self._allowed[stream])), known

    def _begin(self, stream: int, recent: FloatArray) -> None:
        self._mean[stream] = recent.mean()
        self._count[stream] = len(recent)
        self._samples.keep(stream, len(recent))

    def _disturb(self, stream: int, recent: FloatArray) -> None:
        """A disturbed segment; what is known of its noise is that of the one before, if that was a moment ago."""
        if self._disturbed[stream]:
            self._own_prior[stream] = self._variance[stream]
        elif self._age[stream] >= _AFTER_END:
            self._own_prior[stream] = _OWN_DEVIATION**2
        self._disturbed[stream] = True
        self._provisional[stream] = 0.0
        self._begin(stream, recent)
        squares = float(np.square(recent - recent.mean()).sum())
        self._variance[stream] = (_OWN_WEIGHT * self._own_prior[stream] + squares) / (_OWN_WEIGHT + len(recent) - 1)

    def _end(self, stream: int, recent: FloatArray | None = None) -> None:
        """Back at the undisturbed level, which the latest samples tell more of."""
        apart = self._samples.of(stream) - self._base[stream]
        outlying = int((np.abs(apart) > 4 * self.noise[stream]).sum())
        # However much noise there seems to be: samples mostly above what counts as undisturbed were no hiccup.
        lasting = len(apart) > _SHORT and float(np.median(apart)) > self._own
        hiccup = self._age[stream] < _HISTORY and outlying <= _SHORT and not lasting
        if self._to_calibrate[stream] == 0 and self._disturbed[stream] and hiccup:
            self._noise.excuse(stream, apart)  # calibration should know of it
        if self._disturbed[stream]:
            self._own_prior[stream] = max(_OWN_DEVIATION**2, self._variance[stream])
        self._disturbed[stream] = False
        self._provisional[stream] = 0.0
        base, known = float(self._base[stream]), float(self._base_count[stream])
        seen = self._samples.of(stream) if recent is None else recent
        if known < _AFTER_END and len(seen):  # none: it was not measured for long
            total = known + len(seen)
            base, known = min(base + (float(seen.mean()) - base) * len(seen) / total, self._allowed[stream]), total
        self._mean[stream] = self._from_mean[stream] = base
        self._count[stream] = self._from_count[stream] = min(known, _AFTER_END)

    def _learn_levels(self) -> None:
        """One more sample from which to learn levels after a rebase."""
        streams = np.flatnonzero(self._valid & (self._to_learn > 0))
        ordered = np.sort(self._samples.rows[:, streams], axis=0)  # nan last
        counts = len(ordered) - np.isnan(ordered).sum(axis=0)
        columns = np.arange(len(streams))
        medians = (ordered[(counts - 1) // 2, columns] + ordered[counts // 2, columns]) / 2
        self._to_learn[streams] -= 1
        learned = False
        for stream, count, level in zip(streams.tolist(), counts.tolist(), medians.tolist(), strict=True):
            if count >= 3 and abs(level - self._mean[stream]) > self._surprise:
                if learned:
                    self._refresh()
                    learned = False
                self._to_learn[stream] = 0
                base = self._base if self._disturbed[stream] else self._mean
                known = self._base_count if self._disturbed[stream] else np.minimum(self._count, _MEMORY)
                self._change(stream, self._samples.of(stream), float(base[stream]), float(known[stream]))
            elif not self._to_learn[stream]:
                self._mean[stream], self._count[stream] = level, count
                self._from_mean[stream], self._from_count[stream] = level, 1.0
                learned = True
        if learned:
            self._refresh()
