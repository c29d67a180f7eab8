from tests.latency.fakes import fakes as fakes
