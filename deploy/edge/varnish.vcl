vcl 4.1;
# streamproxy behind Varnish: varnishd -a :8000 -f .../varnish.vcl -p pipe_timeout=660

backend default {
  .host = "127.0.0.1";
  .port = "8080";
}

sub vcl_recv {
  # Varnish' default of 60 s ends an answer without stream while the model works, and a caller that leaves is noticed
  # late or never. A pipe has neither: it passes bytes on, and ends on both sides at once. pipe_timeout is its limit of
  # silence; 660 s are total_timeout and a minute.
  return (pipe);
}

sub vcl_pipe {
  # One request for each connection: Varnish does not see a second one in a pipe.
  set bereq.http.connection = "close";
}
