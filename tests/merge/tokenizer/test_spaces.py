"""Rows for new tokens by one map between spaces, and by turned atoms: against independent references."""

from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from torch import Tensor

from merge.arch.rope import Spin, rope_kind, spin_of
from merge.tokenizer.approximate import lengths, orthogonal_pursuit
from merge.tokenizer.spaces import landmark_map, sparse_basis_map
from merge.tokenizer.turning import turned, turning_pursuit


class Held:
    """Rows in memory, a few at a time."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.to(torch.float32)
        self.count, self.width = rows.shape

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, self.count, 32):
            yield first, self._rows[first : first + 32]

    def take(self, positions: Sequence[int]) -> Tensor:
        return self._rows[list(positions)]


def one_by_one(numbers: Sequence[int], work: Callable[[int], None]) -> None:
    for number in numbers:
        work(number)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=9))[0]


def test_landmarks_find_a_rotation_and_a_shift_exactly() -> None:
    donor, turn = normal(80, 12) * torch.linspace(0.2, 2, 12), rotation(12)
    found = landmark_map(Held(donor), Held(donor @ turn + 0.3))
    targets = normal(5, 12, seed=1)
    assert torch.allclose(found.apply(targets), targets @ turn + 0.3, atol=1e-5)
    assert float(found.errors(targets).max()) == 0


def test_landmarks_are_the_orthogonal_procrustes_solution_where_spaces_differ() -> None:
    donor, own = normal(90, 7), normal(90, 7, seed=3)
    own = own + donor @ rotation(7)
    x, y = donor.float().double().numpy(), own.float().double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    u, _, v = numpy.linalg.svd(x.T @ y)
    found = landmark_map(Held(donor), Held(own))
    assert numpy.allclose(found.matrix.numpy(), u @ v, atol=1e-6)
    fitted = numpy.linalg.norm(x @ found.matrix.numpy() - y)
    assert fitted < numpy.linalg.norm(x @ (v.T @ u.T) - y)  # the other way round, which mergekit takes


def test_of_a_wider_donor_only_its_strongest_directions_are_seen() -> None:
    plain = normal(100, 4)
    donor = torch.cat([plain, 1e-3 * normal(100, 3, seed=4)], dim=1) @ rotation(7)
    found = landmark_map(Held(donor), Held(plain @ rotation(4)))
    target = torch.cat([normal(1, 4, seed=5), torch.zeros(1, 3)], dim=1) @ rotation(7)
    assert float(found.errors(target)) < 0.01
    lost = torch.cat([torch.zeros(1, 4), torch.ones(1, 3)], dim=1).double() @ rotation(7)
    assert float(found.errors(lost)) > 0.9
    assert found.matrix.shape == (7, 4) and int(torch.linalg.matrix_rank(found.matrix)) == 4


def test_of_a_narrower_donor_every_direction_is_carried_over() -> None:
    donor, lift = normal(100, 4), normal(4, 9, seed=6)
    found = landmark_map(Held(donor), Held(donor @ torch.linalg.qr(lift.T)[0].T))
    targets = normal(3, 4, seed=7)
    assert torch.allclose(found.apply(targets), targets @ torch.linalg.qr(lift.T)[0].T, atol=1e-5)


def test_a_sparse_basis_carries_over_any_affine_map() -> None:
    donor, lift = normal(60, 6), normal(6, 10, seed=2)
    own = donor @ lift + 1
    found = sparse_basis_map(Held(donor), Held(own), 4, one_by_one)
    targets = normal(3, 6, seed=8)
    assert torch.allclose(found.apply(targets), targets @ lift + 1, atol=1e-4)


def test_a_sparse_basis_is_the_textbooks() -> None:
    donor, own = normal(60, 9), normal(60, 5, seed=2)
    x, y = (rows.float().double().numpy() for rows in (donor, own))
    centred = y - y.mean(0)
    _, vectors = numpy.linalg.eigh(centred.T @ centred)
    directions = torch.from_numpy(vectors[:, ::-1].T.copy()).float()
    atoms = Held(torch.from_numpy(centred))
    picked = orthogonal_pursuit(directions, atoms, lengths(atoms), 3)
    amounts = picked.amounts.numpy()[:, :, None]
    bases = [(amounts * (rows - rows.mean(0))[picked.chosen.numpy()]).sum(1) for rows in (x, y)]
    targets = normal(4, 9, seed=5)
    coordinates = numpy.linalg.lstsq(bases[0].T, (targets.numpy() - x.mean(0)).T, rcond=None)[0].T
    found = sparse_basis_map(Held(donor), Held(own), 3, one_by_one)
    assert numpy.allclose(found.apply(targets).numpy(), coordinates @ bases[1] + y.mean(0), atol=1e-4)


def test_turning_is_a_product_of_complex_numbers() -> None:
    rows, spin = normal(3, 24), Spin(4, 100.0)
    positions = torch.tensor([0.0, 1.5, -7.0], dtype=torch.float64)
    pairs = rows.view(3, 4, 2, 3).numpy()
    speeds = 100.0 ** -(numpy.arange(3) / 3)
    spun = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * numpy.exp(1j * positions.numpy()[:, None, None] * speeds)
    expected = numpy.stack([spun.real, spun.imag], axis=2).reshape(3, 24)
    assert numpy.allclose(turned(rows, positions, spin).numpy(), expected)


def test_one_turned_atom_is_found_with_its_position_and_amount() -> None:
    atoms, spin = normal(40, 16), Spin(2, 10000.0)
    at = torch.tensor([0.2], dtype=torch.float64)
    target = 3 * turned(atoms[[17]], at, spin)
    found = turning_pursuit(target.float(), Held(atoms), lengths(Held(atoms)), 1, spin)
    assert int(found.plain.chosen) == 17 and float(found.errors) < 1e-5
    assert abs(float(found.positions) - 0.2) < 1e-5 and abs(float(found.plain.amounts) - 3) < 1e-4
    own = normal(40, 8, seed=3)
    made = found.apply(Held(own), Spin(4, 500.0))
    assert torch.allclose(made, 3 * turned(own[[17]], at, Spin(4, 500.0)), atol=1e-4)


def test_turning_pursuit_is_mergekits_on_atoms_of_one_length() -> None:
    """Step by step in numpy: mergekit's function gives the same picks there and rows within 4e-6."""
    atoms = torch.nn.functional.normalize(normal(50, 12), dim=1)
    target, spin, heads, half = normal(1, 12, seed=4), Spin(2, 10000.0), 2, 3
    x, left = atoms.float().double().numpy(), target.float().double().numpy()[0]
    speeds = 10000.0 ** -(numpy.arange(half) / half)

    def as_complex(row: numpy.ndarray) -> numpy.ndarray:
        pairs = row.reshape(heads, 2, half)
        return numpy.asarray(pairs[:, 0] + 1j * pairs[:, 1])

    goal, taken, columns, places = left.copy(), [], [], []
    for _ in range(4):
        scores = numpy.abs(x @ left)
        scores[taken] = -1
        taken.append(int(scores.argmax()))
        atom = as_complex(x[taken[-1]])
        ways = [numpy.angle(sign * as_complex(left) * atom.conj()) for sign in (1, -1)]
        found = [float((way * speeds).sum() / (heads * (speeds**2).sum())) for way in ways]
        places.append(min(found, key=abs))
        spun = atom * numpy.exp(1j * places[-1] * speeds)
        columns.append(numpy.stack([spun.real, spun.imag], axis=1).reshape(-1))
        left = left - (left @ columns[-1]) / (columns[-1] @ columns[-1]) * columns[-1]
    amounts = numpy.linalg.lstsq(numpy.stack(columns, axis=1), goal, rcond=None)[0]
    made = turning_pursuit(target.float(), Held(atoms), lengths(Held(atoms)), 4, spin)
    assert made.plain.chosen[0].tolist() == taken
    assert numpy.allclose(made.positions[0].numpy(), places, atol=1e-6)
    assert numpy.allclose(made.plain.amounts[0].numpy(), amounts, atol=1e-5)


def test_the_rotation_of_a_config_is_read_under_every_name() -> None:
    plain = {"num_attention_heads": 4, "rope_theta": 5e5}
    assert spin_of(plain, 32) == Spin(4, 5e5)
    new = {"num_attention_heads": 4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}
    assert spin_of({"text_config": new}, 32) == Spin(4, 1e6) and rope_kind(new) == "yarn"
    assert spin_of(plain, 30) is None and spin_of(plain, 12) is None and spin_of({}, 8) is None
    assert rope_kind({"rope_scaling": {"type": "linear"}}) == "linear" and rope_kind({}) == "default"
