import pytest

from pipeline.layout import Layout
from pipeline.shards.tile_grid import ALL, LAYER, TileGrid, file_size

LAYOUT = Layout(("a.weight", "a.bias", "b.weight", "c.weight"), ((3, 5), (3,), (7, 2), (1,)))  # 33 weights


@pytest.mark.parametrize("blocks", [ALL, LAYER])
@pytest.mark.parametrize("tile", [1, 2, 4, 5, 16, 33, 50])
def test_tiles_are_counted_without_looking_at_each(tile, blocks):
    grid = TileGrid.of(LAYOUT, tile, blocks)
    assert grid.num_stored == grid.tile_mask().sum()


def test_the_size_of_a_file_is_known_at_once_for_any_number_of_weights():
    size = file_size(Layout(("w",), ((30_000_000,),)), 4)
    assert size == pytest.approx(2 * 30_000_000**2, rel=1e-3)
