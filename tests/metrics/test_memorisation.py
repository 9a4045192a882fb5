import numpy as np

from snapfusion.metrics.memorisation import nearest


def test_nearest_is_by_angle_and_not_by_length() -> None:
    real = np.array([[10, 0], [0, 1], [3, 3]], dtype=np.float32)
    rows, cosines = nearest(np.array([[1, 0.1], [0.1, 9], [1, 0.9], [2, 2]], dtype=np.float32), real, block=3)
    assert rows.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(cosines, [1 / 1.01**0.5, 9 / 81.01**0.5, 1.9 / (2 * 1.81) ** 0.5, 1], rtol=1e-6)
