"""The bytes of collective operations, read from a program's text, and the prediction from them."""

import pytest

from benchmarks import scaling

TEXT = """
  %a = f32[1000]{0} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  %b = (f32[10]{0}, bf16[4,5]{1,0}) all-reduce-start(%y, %z), replica_groups={{0,1,2,3},{4,5,6,7}}
  %c = u8[64,3]{1,0} all-gather(%w), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[25]{0} reduce-scatter(%v), replica_groups=[2,4]<=[8], dimensions={0}
  %e = f32[] collective-permute(%u), source_target_pairs={{0,1},{1,0}}
  %f = f32[1000]{0} add(%a, %a)
"""


def test_bytes_of_collectives():
  found = scaling.collectives(TEXT, 8)
  assert found == {
    # 4,000 bytes among 8, and 40 + 40 bytes among 4, twice each: to reduce and to spread.
    "all-reduce": {"count": 2, "bytes": 4080, "wire_bytes": 2 * 7 / 8 * 4000 + 2 * 3 / 4 * 80},
    "all-gather": {"count": 1, "bytes": 192, "wire_bytes": 3 / 4 * 192},
    "reduce-scatter": {"count": 1, "bytes": 100, "wire_bytes": 3 / 4 * 400},
    "collective-permute": {"count": 1, "bytes": 4, "wire_bytes": 4},
  }


def test_prediction_by_hand():
  row = {
    "multiplications_per_image": 1e9,
    "images_per_device": 10,
    "compiled": {"collectives": {"all-reduce": {"count": 1, "bytes": 1, "wire_bytes": 2e9}}},
  }
  found = scaling.predict(row, peak=100e9, utilisation=0.5, bandwidth=1e9)
  assert found["compute_seconds"] == pytest.approx(6e10 / 50e9)
  assert found["transfer_seconds"] == pytest.approx(2)
  assert found["efficiency"] == pytest.approx(1.2 / 3.2)
