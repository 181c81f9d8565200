"""One request's generation, from a model's name to the frames of its stream.

router       a model's name and a caller's headers -> a provider, and its credential
attempts     a request's jobs: one, or n side by side
driver       performs the steps of one conversation
converting   an image as another kind of file
producer     fills a stream, from its start to its end
relaying     chats and responses, passed on as they came
"""
