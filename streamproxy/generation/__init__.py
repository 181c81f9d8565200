"""One request's generation, from a model's name to the frames of its stream.

router       a model's name and a caller's headers -> who serves it, with which credential
attempts     a request's jobs: one, or n side by side
driver       carries one conversation out, step by step
converting   an image as another kind of file
producer     fills a stream, from its start to its end
relaying     passes on what is not ours to translate
"""
