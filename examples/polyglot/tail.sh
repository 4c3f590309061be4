#!/usr/bin/env bash
# Tails the status of all executions in bash alone: one line of JSON a message, {"subject": .., "status": ..}.
# Run: IM_URL=nats://TOKEN@127.0.0.1:4222 ./tail.sh [--count MESSAGES | --finished EXECUTIONS]   (until stopped without)
set -u
export LC_ALL=C # lengths are bytes, as they are on the wire
mode=${1:-} left=${2:--1} crlf=$'\r\n'
terminal='^im\.status\.[^.]+\.[^.]+\._\.(completed|failed|cancelled)$'

[[ ${IM_URL:?} =~ ^nats://(([^@]*)@)?([^:/]+):([0-9]+) ]] || { echo "IM_URL is not nats://TOKEN@HOST:PORT" >&2; exit 2; }
exec 3<>"/dev/tcp/${BASH_REMATCH[3]}/${BASH_REMATCH[4]}" || exit 3
options="\"verbose\":false,\"pedantic\":false,\"headers\":false,\"auth_token\":\"${BASH_REMATCH[2]}\""
cat >&3 <<<"CONNECT {$options}${crlf}SUB im.status.> 1${crlf}PING"$'\r'

while IFS=$' \r' read -r verb subject sid reply size <&3; do
  case $verb in
    PING) cat >&3 <<<PONG$'\r' ;;
    PONG) echo "listening" >&2 ;;
    -ERR) echo "the server refuses: $subject $sid $reply" >&2; exit 3 ;;
    MSG)
      IFS= read -r -N $((${size:-$reply} + 2)) body <&3
      printf '{"subject":"%s","status":%s}\n' "$subject" "${body%"$crlf"}"
      if [[ $mode == --count || $mode == --finished && $subject =~ $terminal ]]; then
        ((--left == 0)) && exit 0
      fi
      ;;
  esac
done
echo "the connection is gone" >&2
exit 3
