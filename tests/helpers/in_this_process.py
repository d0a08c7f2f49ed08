"""An executor that makes each call at once, in this process, where mocks work."""

from concurrent.futures import Executor, Future


class InThisProcess(Executor):
    """In place of a `ProcessPoolExecutor`."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future
