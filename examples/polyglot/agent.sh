#!/usr/bin/env bash
# An agent in bash (4.1 or later) and nothing else: the NATS text protocol over /dev/tcp. It counts the words of a text.
# Run: IM_URL=nats://TOKEN@127.0.0.1:4222 ./agent.sh AGENT [--count WORKS]      (serves until stopped without --count)
set -u
export LC_ALL=C # lengths are bytes, as they are on the wire
agent=${1:?usage: agent.sh AGENT [--count WORKS]} works_left=${3:--1} crlf=$'\r\n'
inbox=_INBOX.$agent-$$-$RANDOM$RANDOM pulled_at_s=0
patience_s=6 # a little longer than a pull lasts: who hears nothing for that long asks again
request='{"batch":1,"expires":5000000000}'
pull="PUB \$JS.API.CONSUMER.MSG.NEXT.IM_WORK.$agent $inbox.work ${#request}$crlf$request"
text_field='"text" *: *"(([^"\\]|\\.)*)"'
reply_field='"reply_to" *: *"(im\.fact\.[^" ]+\.outcome\.'$agent'\.[^" ]+)"'

# cat writes all lines at once; bash's own printf writes each by itself, and every such pause costs 40 ms.
send() { cat <<<"$1"$'\r' >&3; }
ask() { pulled_at_s=$SECONDS && send "${1-}$pull"; }

do_work() { # the work as JSON, the subject that acknowledges it
  local outcome='{"error":{"type":"NoText","message":"the work has no text","retryable":false}}' text words
  if [[ $1 =~ $text_field ]]; then
    text=${BASH_REMATCH[1]//\\\\/_} # an escaped backslash is a letter of some word; \n, \r and \t part words
    read -r -a words <<<"${text//\\[nrt]/ }"
    outcome="{\"result\":{\"words\":${#words[@]}}}"
  fi
  if [[ $1 =~ $reply_field ]]; then # the PubAck comes back on a subject that says which work it settles
    send "PUB ${BASH_REMATCH[1]} $inbox.done.$2 ${#outcome}$crlf$outcome"
  else # no work at all: nobody could do it
    ask "PUB $2 5$crlf+TERM$crlf"
  fi
}

settle() { # the PubAck as JSON, the subject that acknowledges the work
  if [[ $1 != *'"error"'* || $1 == *'maximum messages per subject exceeded'* ]]; then # stored, or already there
    if ((--works_left == 0)); then send "PUB $2 4$crlf+ACK${crlf}PING"; else ask "PUB $2 4$crlf+ACK$crlf"; fi
  else
    local later='-NAK {"delay":5000000000}'
    echo "not stored, again in 5 s: $1" >&2
    ask "PUB $2 ${#later}$crlf$later$crlf"
  fi
}

[[ ${IM_URL:?} =~ ^nats://(([^@]*)@)?([^:/]+):([0-9]+) ]] || { echo "IM_URL is not nats://TOKEN@HOST:PORT" >&2; exit 2; }
exec 3<>"/dev/tcp/${BASH_REMATCH[3]}/${BASH_REMATCH[4]}" || exit 3
options="\"verbose\":false,\"pedantic\":false,\"headers\":false,\"name\":\"$agent\",\"auth_token\":\"${BASH_REMATCH[2]}\""
ask "CONNECT {$options}${crlf}SUB $inbox.> 1$crlf"

while true; do
  IFS=$' \r' read -r -t $patience_s verb subject sid reply size <&3 || {
    (($? > 128)) && [[ -z $verb ]] || { echo "the connection is gone" >&2; exit 3; }
    ask # no consumer yet, or the answer was lost
    continue
  }
  case $verb in
    PING) send PONG ;;
    PONG) exit 0 ;; # answers the PING behind the last +ACK: the server has it
    -ERR) echo "the server refuses: $subject $sid $reply" >&2; exit 3 ;;
    MSG)
      IFS= read -r -t $patience_s -N $((${size:-$reply} + 2)) body <&3 || exit 3
      body=${body%"$crlf"}
      if [[ $subject == "$inbox".done.* ]]; then settle "$body" "${subject#"$inbox.done."}"
      elif [[ -n $body ]]; then do_work "$body" "$reply"
      else ((SECONDS > pulled_at_s)) || sleep 1 && ask; fi # the pull is over; over at once means refused
      ;;
  esac
done
